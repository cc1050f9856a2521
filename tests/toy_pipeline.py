"""A DVC repository of three quick stages, for tests of the flow: `letters`, `words@long` and `words@short`, `book`."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from flows.server import as_client
from tests.conftest import ENVIRONMENT, ROOT, commit_all

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

# What a stage does stands in its .in file: nothing, or refuse, crash, wait for a file, or hang until it is stopped.
# It leaves its outcome as the project's stages do, see stages/command.py.
TOY = """
import json, os, sys, time
from pathlib import Path

name = sys.argv[1]
Path("runs.txt").open("a").write(name + "\\n")
source = Path(name + ".in")
text = source.read_text() if source.exists() else ""
print(text)

def end(kind, message, code):
    outcome = Path(".work", os.environ["DVC_STAGE"].rpartition(":")[2], "outcome.json")
    outcome.parent.mkdir(parents=True, exist_ok=True)
    outcome.write_text(json.dumps({"kind": kind, "message": message}))
    sys.exit(code)

if text == "refuse":
    end("refused", "refuses this input", 2)
if text == "crash" or text == "crash once" and not Path("crashed").exists():
    Path("crashed").touch()
    os.abort()
if text == "error: in numpy, once" and not Path("crashed").exists():
    Path("crashed").touch()
    import numpy, traceback
    try:
        numpy.zeros(2).reshape(3)
    except ValueError as error:
        traceback.print_exc()
        end("failed", str(error), 1)
if text == "wait":
    Path("pid").write_text(str(os.getpid()))
    while not Path("go").exists():
        time.sleep(0.1)
if text == "hang":
    Path("pid").write_text(str(os.getpid()))
    try:
        while True:
            time.sleep(0.1)
    except KeyboardInterrupt:
        Path("stopped").write_text("SIGINT")
        raise
Path(name + ".out").write_text(name + text.strip())
if name.startswith("words"):
    Path(name + ".json").write_text(json.dumps({"all": {"recall": {"value": 0.5, "low": 0.25, "high": 0.75}}}))
end("done", "", 0)
"""


def new_toy(folder: Path) -> Path:
    """The toy repository in `folder`; its stages have not run yet."""
    for name, text in {"dvc.yaml": DVC_YAML, "toy.py": TOY, ".gitignore": "/.prefect\n/.work\n/runs.txt\n"}.items():
        (folder / name).write_text(text)
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


def start_flow(toy: Path, api: str, *command: str, output: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
    """`python -m flows.pipeline`, or python with the arguments `command`, on the Prefect server at `api`, if any.

    That server's PREFECT_HOME is ours, and the flow's is the toy's.
    """
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(toy / ".prefect")}
    return subprocess.Popen(
        [sys.executable, *(command or ("-m", "flows.pipeline"))],
        cwd=toy,
        env=environment | (as_client(api) if api else {}),
        text=True,
        stdout=output,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit "ignore"
    )


def run_flow(toy: Path, api: str, *command: str) -> tuple[int, str]:
    """The exit code and the output of `python -m flows.pipeline`."""
    process = start_flow(toy, api, *command)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def outcomes(output: str) -> dict[str, str]:
    """The final line of each stage."""
    lines = [line.split(": ") for line in output.splitlines()]
    stages = ("letters", "words@long", "words@short", "book")
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[0] in stages}
