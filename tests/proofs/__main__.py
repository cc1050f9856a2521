"""Runs one proof and writes what it has seen to reports/proofs/; without a name, lists the proofs."""

import ast
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks.report import processor
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user

PACKAGE = "tests.proofs"
REPORTS = Path("reports", "proofs")  # in the folder that the command runs in


def summaries() -> dict[str, str]:
    """Each proof's name with the first line of its docstring; none is imported for it."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {file.stem: (ast.get_docstring(ast.parse(file.read_bytes())) or "").partition("\n")[0] for file in files}


def chosen(names: list[str]) -> str:
    """The one name among the arguments, if there is such a proof."""
    if len(names) > 1:
        raise UserError(f"one proof at a time, not {' '.join(names)}")
    (name,) = names
    if name not in summaries():
        raise UserError(f"no proof is named {name!r}. There are: {', '.join(summaries()) or 'none'}")
    return name


def run(name: str) -> Path:
    """Runs the proof `name` and gives the file with its record; a proof that fails raises and writes nothing."""
    prove = import_module(f"{PACKAGE}.{name}").prove
    record: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        # the records of other proofs change no code
        "dirty": bool(git("status", "--porcelain", "--", ".", f":!{REPORTS}")),
        "command": f"python -m {PACKAGE} {name}",
        "machine": processor(),
    }
    start = time.monotonic()
    figures = prove()
    record |= {"seconds": round(time.monotonic() - start, 1), "figures": figures}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"  # before the file is opened: it may raise
    REPORTS.mkdir(parents=True, exist_ok=True)
    file = REPORTS / f"{name}.json"
    file.write_text(text, encoding="utf-8")
    return file


def git(*arguments: str) -> str:
    """What the git command prints."""
    return subprocess.run(["git", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    if not sys.argv[1:]:
        for name, summary in summaries().items():
            print(f"{name:16} {summary}")
        return
    with told_to_the_user():
        name = chosen(sys.argv[1:])
    set_switches()  # before a proof imports torch
    file = run(name)
    print(f"proved; wrote {file}:\n{file.read_text(encoding='utf-8')}", end="")


if __name__ == "__main__":
    main()
