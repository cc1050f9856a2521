"""A DVC repository of three quick stages, for tests of the flow: `letters`, `words@long` and `words@short`, `book`."""

import shutil
from pathlib import Path

from tests.conftest import ROOT, commit_all

DVC_YAML = """
stages:
  letters:
    cmd: python toy.py letters
    deps: [toy.py, letters.in]
    outs: [letters.out]
  words:
    foreach: [long, short]
    do:
      cmd: python toy.py words-${item}
      deps: [toy.py, letters.out, "words-${item}.in"]
      outs: ["words-${item}.out"]
      metrics:
        - "words-${item}.json": {cache: false}
  book:
    cmd: python toy.py book
    deps: [toy.py, words-long.out, words-short.out]
    outs: [book.out]
"""

# What a stage does stands in its .in file: nothing, or fail, crash once, or hang until it is stopped.
TOY = """
import json, os, sys, time
from pathlib import Path

name = sys.argv[1]
Path("runs.txt").open("a").write(name + "\\n")
source = Path(name + ".in")
text = source.read_text() if source.exists() else ""
if text == "refuse":
    sys.exit("error: refuses this input")
if text == "crash once" and not Path("crashed").exists():
    Path("crashed").touch()
    os.abort()
if text == "hang":
    Path("pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)
Path(name + ".out").write_text(name + text)
if name.startswith("words"):
    Path(name + ".json").write_text(json.dumps({"all": {"recall": {"value": 0.5, "low": 0.25, "high": 0.75}}}))
"""


def new_toy(folder: Path) -> Path:
    """The toy repository in `folder`; its stages have not run yet."""
    for name, text in {"dvc.yaml": DVC_YAML, "toy.py": TOY, ".gitignore": "/.prefect\n/runs.txt\n"}.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("letters", "words-long", "words-short"):
        (folder / f"{name}.in").write_text("", encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
    commit_all(folder, "init", "-q", "-b", "main")
    return folder


def new_toy_of_one_stage(folder: Path) -> Path:
    """The same with `letters` alone."""
    toy = new_toy(folder)
    (toy / "dvc.yaml").write_text(DVC_YAML.partition("  words:")[0], encoding="utf-8")
    return toy


def runs(toy: Path) -> list[str]:
    """The stages that have really run, in order, since the last call."""
    file = toy / "runs.txt"
    names = file.read_text(encoding="utf-8").split() if file.exists() else []
    file.unlink(missing_ok=True)
    return names
