"""Mutants: copies of a file with one small mistake each, and whether the tests of its subject notice."""

import ast
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from itertools import pairwise
from pathlib import Path

from tests.conftest import ENVIRONMENT, ROOT

FLIPPED: dict[type, str] = {
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"},
    **{ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "*", ast.Pow: "*"},
    **{ast.BitAnd: "|", ast.BitOr: "&", ast.And: "or", ast.Or: "and"},
}
PAIRS = (("min", "max"), ("argmin", "argmax"), ("minimum", "maximum"), ("any", "all"), ("floor", "ceil"))
OPPOSITE = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
WITHOUT_CODE = ("annotation", "returns", "decorator_list")  # fields of nodes
Change = tuple[ast.expr | ast.stmt, str]  # a node, and what stands in its place


@dataclass(frozen=True)
class Mutant:
    """One file with one change."""

    file: str
    line: int
    before: str  # that line
    after: str
    text: str = field(repr=False)  # of the whole file

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before} -> {self.after}"


def mutants_of(text: str, file: str) -> list[Mutant]:
    """Every mutant of the file's text that is another program."""
    source, tree = text.encode(), ast.parse(text)
    starts = [0]  # of the lines, in bytes, as `ast` counts columns
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    mutants = {}
    for node, replacement in _changes(tree):
        assert node.end_lineno is not None and node.end_col_offset is not None
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        changed = (source[:start] + replacement.encode() + source[end:]).decode()
        if ast.dump(ast.parse(changed)) != ast.dump(tree):
            before, after = (lines.splitlines()[node.lineno - 1].strip() for lines in (text, changed))
            mutants[changed] = Mutant(file, node.lineno, before, after, changed)
    return list(mutants.values())


def _changes(tree: ast.AST) -> Iterator[Change]:
    for node in _code_in(tree):
        match node:
            case ast.stmt():
                yield from ((node, text) for text in _other_statements(node))
            case ast.expr():
                yield from ((node, text) for text in _other_values(node))
        match node:
            case ast.If(test=test) | ast.While(test=test) | ast.comprehension(ifs=[test]):
                yield test, f"(not ({ast.unparse(test)}))"


def _code_in(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run; what is in an f-string has no place of its own before Python 3.12."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    yield tree
    for name, value in ast.iter_fields(tree):
        if name not in WITHOUT_CODE and not isinstance(tree, ast.JoinedStr):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _code_in(child)


def _other_statements(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.AugAssign() | ast.Raise() | ast.Assert():
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(value)):
                yield "pass"  # it keeps the value that it had
        case ast.Continue():
            yield "break"
        case ast.Break():
            yield "continue"


def _other_values(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (f"({value + 1!r})", f"({value - 1!r})")
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield f"(({ast.unparse(left)}) {FLIPPED[type(op)]} ({ast.unparse(right)}))"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in FLIPPED:
            yield f"(({ast.unparse(left)}) {FLIPPED[type(op)]} ({ast.unparse(right)}))"
        case ast.BoolOp(op=op, values=values):
            yield "(" + f" {FLIPPED[type(op)]} ".join(f"({ast.unparse(value)})" for value in values) + ")"
        case ast.UnaryOp(operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield f"(({ast.unparse(orelse)}) if {ast.unparse(test)} else ({ast.unparse(body)}))"
        case ast.Name(id=name) if name in OPPOSITE:
            yield OPPOSITE[name]
        case ast.Attribute(value=value, attr=name) if name in OPPOSITE:
            yield ast.unparse(ast.Attribute(value, OPPOSITE[name]))
        case ast.Call():
            yield from map(ast.unparse, _other_calls(node))


def _other_calls(node: ast.Call) -> Iterator[ast.Call]:
    """Two neighbours among the arguments change places; one that is named is left out."""
    func, args, keywords = node.func, node.args, node.keywords
    for i, neighbours in enumerate(pairwise(args)):
        if not any(isinstance(argument, ast.Starred) for argument in neighbours):
            yield ast.Call(func, [*args[:i], *neighbours[::-1], *args[i + 2 :]], keywords)
    for i, keyword in enumerate(keywords):
        if keyword.arg:
            yield ast.Call(func, args, keywords[:i] + keywords[i + 1 :])


def sampled(files: Sequence[str], at_most: int, seed: int) -> tuple[list[Mutant], int]:
    """A sample of the mutants of the project's files, in the files' order, and of how many."""
    every = [mutant for file in files for mutant in mutants_of((ROOT / file).read_text(encoding="utf-8"), file)]
    places = random.Random(seed).sample(range(len(every)), min(at_most, len(every)))
    return [every[place] for place in sorted(places)], len(every)


class Judge:
    """Runs the tests of each file in `project`, a copy that is its own, on the file's mutants."""

    def __init__(self, project: Path, tests_of: Mapping[str, Sequence[str]], patience: float = 30) -> None:
        self._project, self._tests_of, self._patience = project, tests_of, patience
        self._seconds: dict[str, float] = {}  # that the unchanged file's tests take

    def __call__(self, mutant: Mutant) -> str:
        """`killed`, `survived`, or `timeout` where the tests do not end in a multiple of their time."""
        original = (self._project / mutant.file).read_text(encoding="utf-8")
        if mutant.file not in self._seconds:
            start = time.monotonic()
            assert self._tested(mutant.file, original) == "survived", f"{mutant.file}: its tests fail without a mutant"
            self._seconds[mutant.file] = time.monotonic() - start
        try:
            return self._tested(mutant.file, mutant.text, self._patience + 5 * self._seconds[mutant.file])
        finally:
            self._write(mutant.file, original)

    def _tested(self, file: str, text: str, limit: float | None = None) -> str:
        self._write(file, text)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *self._tests_of[file]]
        try:
            result = subprocess.run(
                command, cwd=self._project, env=ENVIRONMENT, timeout=limit, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        assert result.returncode in (0, 1, 2), result.stdout + result.stderr  # passed, failed, not even collected
        return "killed" if result.returncode else "survived"

    def _write(self, file: str, text: str) -> None:
        path = self._project / file
        path.write_text(text, encoding="utf-8")
        # Python tells stale bytecode by the size and the whole second, and tests may take less.
        Path(cache_from_source(str(path))).unlink(missing_ok=True)
