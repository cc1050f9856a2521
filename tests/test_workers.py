"""What pytest's workers share is made once, also when they want it at the same time."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.workers import made_once


def test_of_workers_that_want_the_same_the_first_makes_it_and_all_have_it_whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def make(folder: Path) -> None:
        with (folder / "made").open("a") as file:
            file.write("half")
            time.sleep(0.2)
            file.write(" and half\n")

    def want(_: int) -> str:
        return (made_once(tmp_path_factory, "wanted", make) / "made").read_text()

    with ThreadPoolExecutor(4) as workers:  # a lock is of the open file: threads wait as processes do
        assert set(workers.map(want, range(4))) == {"half and half\n"}


def test_what_a_worker_failed_to_make_the_next_makes_anew(tmp_path_factory: pytest.TempPathFactory) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(tmp_path_factory, "failing", fails)
    folder = made_once(tmp_path_factory, "failing", lambda folder: (folder / "whole").touch())
    assert [file.name for file in folder.iterdir()] == ["whole"]
