"""Files and folders appear whole or not at all."""

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_core.files import atomic_write, replacing_file, replacing_folder, sha256_file
from tests.test_full_disk import on_a_disk_of


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


FILL = """
import sys
from pathlib import Path
import duckdb
import numpy as np
from safetensors.numpy import save_file
from clip_core.errors import UserError
from clip_core.files import atomic_write, replacing_folder
small = Path(sys.argv[1])
with replacing_folder(small / "out") as folder:
    (folder / "old").write_text("old")
atomic_write(small / "file", "old")
for write in (
    lambda: atomic_write(small / "file", bytes(2**20)),
    lambda: (folder / "new").write_bytes(bytes(2**20)),
    lambda: np.save(folder / "new.npy", np.zeros(2**17)),
    lambda: save_file({"new": np.zeros(2**17)}, folder / "new.safetensors"),
    lambda: duckdb.connect(folder / "new.duckdb").execute("CREATE TABLE new AS SELECT random() FROM range(1000000)"),
):
    try:
        with replacing_folder(small / "out") as folder:
            write()
        sys.exit("wrote onto a full disk")
    except UserError as error:
        print(error)
    print((small / "file").read_text(), *sorted(path.name for path in small.rglob("*")))
"""


def test_a_full_disk_leaves_what_was_there_and_says_what_to_do(tmp_path: Path) -> None:
    small = tmp_path / "small"
    told = on_a_disk_of(2**18, small, FILL, small)
    for name, said in zip(["file", *["out"] * 4], told[::2], strict=True):
        assert said.startswith(f"{small / name}: the disk is full (0 MiB free); make room and run again")
    assert told[1::2] == ["old file old out"] * 5


KILLED_WHILE_WRITING = """
with replacing_folder(path) as aside:
    (aside / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_BETWEEN_THE_RENAMES = """
def rename(path, target):
    if path.suffix == ".aside":
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename(path, target)
Path.rename = rename
with replacing_folder(path) as aside:
    (aside / "new").touch()
"""
KILLED_WHILE_WRITING_A_FILE = """
with replacing_file(path) as aside:
    aside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(script: str, path: Path) -> None:
    head = "import os, signal, sys\nfrom pathlib import Path\nfrom clip_core.files import "
    code = f"{head}replacing_file, replacing_folder\npath = Path(sys.argv[1])\n{script}"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL


@pytest.mark.parametrize("script", [KILLED_WHILE_WRITING, KILLED_BETWEEN_THE_RENAMES])
def test_after_a_kill_the_next_call_tidies_up_and_the_old_folder_is_there(script: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    killed(script, tmp_path / "out")
    assert len(list(tmp_path.iterdir())) > 1
    with pytest.raises(KeyError), replacing_folder(tmp_path / "out"):
        raise KeyError
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["old", "out"]


@pytest.mark.parametrize("script", [KILLED_WHILE_WRITING, KILLED_WHILE_WRITING_A_FILE])
@pytest.mark.parametrize("writing", [replacing_file, replacing_folder])
def test_after_a_kill_the_next_write_of_any_name_into_the_folder_tidies_up(
    script: str, writing: Callable, tmp_path: Path
) -> None:
    killed(script, tmp_path / "step-1.pt")
    assert [p.name.startswith(".step-1.pt.") for p in tmp_path.iterdir()] == [True]
    with pytest.raises(KeyError), writing(tmp_path / "step-2.pt"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "out") as first, replacing_file(tmp_path / "file") as file:
        with replacing_folder(tmp_path / "out") as second:
            (second / "second").touch()
        file.touch()
        (first / "first").touch()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "first", "out"]


def test_a_folder_of_the_users_that_is_named_like_one_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".config.20240101.old").mkdir()
    (tmp_path / ".config.20240101.old" / "mine").touch()
    atomic_write(tmp_path / "new", "new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".config.20240101.old", "mine", "new"]


def write_often(folder: Path, name: str) -> None:
    for number in range(300):
        atomic_write(folder / name, str(number))


def test_writers_that_tidy_up_in_one_folder_at_once_never_remove_what_another_has_just_made(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    writers = [multiprocessing.get_context("fork").Process(target=write_often, args=(tmp_path, name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(names, "299")
