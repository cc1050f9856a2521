"""A process is known by its number and its start, and a lock by the file it is on."""

import os
import subprocess
from pathlib import Path

import pytest

from clip_core.guard import start_of
from clip_core.locks import is_alive, is_at, signature, try_lock


def test_who_signed_lives_and_another_with_its_number_is_somebody_else() -> None:
    number, _, start = signature().partition("@")
    assert is_alive(signature())
    assert is_alive(number)
    assert not is_alive(f"{number}@{int(start) - 1}")


def test_a_process_that_has_ended_is_gone_also_while_its_number_is_kept_for_its_parent() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        start = start_of(process.pid)
        assert is_alive(f"{process.pid}@{start}")
        assert process.stdin
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(f"{process.pid}@{start}")
    assert not is_alive(str(process.pid))


@pytest.mark.parametrize("nobody", ["", "4x", "@1"])
def test_what_is_no_signature_is_nobody_s(nobody: str) -> None:
    assert not is_alive(nobody)


def test_one_at_a_time_has_the_lock_and_it_is_no_lock_on_what_takes_the_file_s_place(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    first, second = (os.open(path, os.O_RDWR) for _ in range(2))
    assert try_lock(first)
    assert not try_lock(second)
    os.close(first)
    assert try_lock(second)
    assert is_at(path, second)
    path.unlink()
    assert not is_at(path, second)
    path.touch()
    assert not is_at(path, second)
    os.close(second)
