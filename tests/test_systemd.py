"""deploy/systemd: units that systemd takes, with commands that exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def judged(text: str, folder: Path, name: str) -> str:
    """What systemd has to say of a unit whose project lies in `folder`."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    unit = folder / name
    unit.write_text(text.replace("/srv/clip", str(folder)), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return "" if done.returncode == 0 and not done.stdout else f"{done.returncode}: {done.stdout}"


@pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="no systemd-analyze: apt-get install -y systemd (as root)"
)
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_has_nothing_to_say_against_the_unit_but_against_a_misspelt_one(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    assert judged(text, tmp_path / "right", unit.name) == ""
    assert "kill mode" in judged(text.replace("KillMode=mixed", "KillMode=mixt"), tmp_path / "wrong", unit.name)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_command_of_the_unit_and_those_it_speaks_of_take_these_options(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    (module,) = re.findall(r"(?m)^ExecStart=/srv/clip/.venv/bin/python -m (\S+)", text)
    options = set(re.findall(r" (--[a-z-]+)", text.replace("--man", "")))
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert options <= set(re.findall(r"--[a-z-]+", done.stdout))
