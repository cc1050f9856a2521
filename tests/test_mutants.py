"""Mutants are other programs, each with one mistake, and those that tests see are told from those that none sees.

The long form, a hundred mutants of the project's own files, is `make prove NAME=mutants`.
"""

import ast
import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.mutants import Judge, Mutant, mutants_of, sampled
from tests.proofs.mutants import JUDGED, TESTS

TOY = """
def clipped(numbers: list[int | None], most: int = 9) -> list[int]:
    "At most `most`."
    left = [min(number, most) for number in numbers if number is not None]
    while len(left) > 3:
        left.pop()
    return left
"""
TOY_TEST = """
from toy import clipped

def test_numbers_are_clipped():
    assert clipped([1, 12, 5, None]) == [1, 9, 5]
    assert clipped([1, 2, 3, 4]) == [1, 2, 3]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TOY_TEST)
    return tmp_path


def toy_mutant(after: str) -> Mutant:
    (mutant,) = [mutant for mutant in mutants_of(TOY, "toy.py") if mutant.after == after]
    return mutant


@pytest.mark.parametrize(
    ("line", "mistakes"),
    [
        ("a < b", {"((a) <= (b))"}),
        ("a not in b", {"((a) in (b))"}),
        ("a + b", {"((a) - (b))"}),
        ("a and not b", {"((a) or (not b))", "a and (b)"}),
        ("x = 3", {"x = (4)", "x = (2)"}),
        ("x = True", {"x = False"}),
        ("x: 'int | None' = 2.5", {"x: 'int | None' = (3.5)", "x: 'int | None' = (1.5)"}),
        ("f(a, b, k=c)", {"pass", "f(b, a, k=c)", "f(a, b)"}),
        ("x = min(a)", {"x = max(a)"}),
        ("x = (a == b).any()", {"x = (a == b).all()", "x = (((a) != (b))).any()"}),
        ("x = a if b else c", {"x = ((c) if b else (a))"}),
        ("x = x[a]", {"pass"}),
        ("x += a", {"pass"}),
        ("raise x", {"pass"}),
        ("if a: b", {"if (not (a)): b"}),
        ("'docs, and numbers: 3'", set()),
        ("if TYPE_CHECKING: f(a)", set()),
        ("x = '猫' + f'{a + 1}'", {"x = (('猫') - (f'{a + 1}'))"}),
        ("x = '猫', 猫 + 1", {"x = '猫', ((猫) - (1))", "x = '猫', 猫 + (2)", "x = '猫', 猫 + (0)"}),
    ],
)
def test_the_mistakes_are_those_of_the_table(line: str, mistakes: set[str]) -> None:
    assert {mutant.after for mutant in mutants_of(f"{line}\n", "line.py")} == mistakes


@pytest.mark.slow
@pytest.mark.parametrize("file", TESTS)
def test_every_mutant_of_our_files_is_another_program_with_one_line_changed_first(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    mutants = mutants_of(text, file)
    programs = {ast.dump(ast.parse(mutant.text)) for mutant in mutants}
    assert len(programs) == len(mutants) > 10
    assert ast.dump(ast.parse(text)) not in programs
    for mutant in mutants:
        lines, changed = text.splitlines(), mutant.text.splitlines()
        assert lines[: mutant.line - 1] == changed[: mutant.line - 1]
        assert (lines[mutant.line - 1].strip(), changed[mutant.line - 1].strip()) == (mutant.before, mutant.after)
        assert mutant.before != mutant.after


def test_a_sample_is_a_function_of_its_seed() -> None:
    files = list(TESTS)[:2]  # the shorter ones
    (one, possible), (again, _), (other, _) = (sampled(files, 20, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert len(one) == len({mutant.text for mutant in one}) == 20 < possible
    assert len(sampled(files[:1], 10**6, 1)[0]) == sampled(files[:1], 1, 1)[1]


@pytest.mark.slow
def test_what_tests_see_is_told_from_what_none_sees_and_the_file_is_then_as_it_was(project: Path) -> None:
    judge = Judge(project, {"toy.py": ["test_toy.py"]}, patience=2)
    by_hand = {
        "left = [max(number, most) for number in numbers if number is not None]": "killed",
        "def clipped(numbers: list[int | None], most: int = (8)) -> list[int]:": "killed",
        "while len(left) > (4):": "killed",
        "pass": "timeout",  # nothing is ever popped
    }
    assert {after: judge(toy_mutant(after)) for after in by_hand} == by_hand
    (project / "test_toy.py").write_text(TOY_TEST.replace("12", "3").replace("9", "3"))
    blind = Judge(project, {"toy.py": ["test_toy.py"]})
    assert blind(toy_mutant("def clipped(numbers: list[int | None], most: int = (8)) -> list[int]:")) == "survived"
    assert (project / "toy.py").read_text() == TOY


@pytest.mark.slow
def test_tests_that_fail_without_a_mutant_judge_none(project: Path) -> None:
    (project / "test_toy.py").write_text(TOY_TEST.replace("9", "8"))
    with pytest.raises(AssertionError, match=r"toy\.py: its tests fail without a mutant"):
        Judge(project, {"toy.py": ["test_toy.py"]})(toy_mutant("while len(left) > (4):"))


def test_every_file_of_the_proof_has_tests() -> None:
    assert all((ROOT / test).is_file() for tests in TESTS.values() for test in tests)


def test_no_judgement_is_of_a_line_that_is_gone() -> None:
    mutants = [mutant for file in TESTS for mutant in mutants_of((ROOT / file).read_text(encoding="utf-8"), file)]
    assert JUDGED.keys() <= {(mutant.file, mutant.before, mutant.after) for mutant in mutants}


def test_each_survivor_of_the_committed_proof_is_judged() -> None:
    record = ROOT / "reports" / "proofs" / "mutants.json"
    survivors = json.loads(record.read_text(encoding="utf-8"))["figures"]["survivors"]
    unread = [m for m in survivors if (m["file"], m["before"], m["after"]) not in JUDGED]
    assert unread == []
