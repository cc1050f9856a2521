"""Files and folders appear whole or not at all."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.errors import UserError
from clip_core.files import atomic_write, replacing_folder, sha256_file


def test_a_written_file_has_its_bytes_and_nothing_lies_beside_it(
    tmp_path: Path,
) -> None:
    atomic_write(tmp_path / "new" / "a.json", "old")
    atomic_write(tmp_path / "new" / "a.json", "猫")
    assert (tmp_path / "new" / "a.json").read_text() == "猫"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    atomic_write(tmp_path / "abc", b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replacing_folder(tmp_path / "out") as folder:
            (folder / content).write_text(content)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "new"]


def test_what_a_library_made_private_can_be_read_by_all(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "out") as folder:
        (folder / "private").touch(mode=0o600)
    assert (tmp_path / "out" / "private").stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_the_old_folder_and_no_litter(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "out") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(KeyError), replacing_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise KeyError
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="make room and run again"),
        replacing_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (tmp_path / "out").exists()


KILLED_WHILE_WRITING = """
with replacing_folder(folder) as aside:
    (aside / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_BETWEEN_THE_RENAMES = """
def rename(path, target):
    if path.suffix == ".aside":
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename(path, target)
Path.rename = rename
with replacing_folder(folder) as aside:
    (aside / "new").touch()
"""


def killed(script: str, folder: Path) -> None:
    head = "import os, signal, sys\nfrom pathlib import Path\nfrom clip_core.files import replacing_folder\n"
    code = f"{head}folder = Path(sys.argv[1])\n{script}"
    assert subprocess.run([sys.executable, "-c", code, str(folder)]).returncode == -signal.SIGKILL


@pytest.mark.parametrize("script", [KILLED_WHILE_WRITING, KILLED_BETWEEN_THE_RENAMES])
def test_after_a_kill_the_next_call_tidies_up_and_the_old_folder_is_there(script: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    killed(script, tmp_path / "out")
    assert len(list(tmp_path.iterdir())) > 1
    with pytest.raises(KeyError), replacing_folder(tmp_path / "out"):
        raise KeyError
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["old", "out"]


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    longer = tmp_path / ".out.put.abcdefgh.old"
    longer.mkdir()
    with replacing_folder(tmp_path / "out") as first:
        with replacing_folder(tmp_path / "out") as second:
            (second / "second").touch()
        (first / "first").touch()
    assert longer.exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["first"]
