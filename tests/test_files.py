"""Files and folders appear whole or not at all."""

import errno
from pathlib import Path

import pytest

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


def test_a_failure_leaves_the_old_folder_and_no_litter(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "out") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(KeyError), replacing_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise KeyError
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="make room and run again"),
        replacing_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (tmp_path / "out").exists()
