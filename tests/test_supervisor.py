"""A server that is looked after: what dies is healed or started again; what can not be ends with an exit code."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple
from urllib.parse import quote

import pytest

from clip_core.serve import releases
from clip_core.serve.rollout import roll_back, roll_out
from clip_core.serve.supervisor import MAX_REPAIRS, GaveUp, Supervisor
from clip_core.serve.triton import shared_memory
from tests.prefect_api import commands
from tests.served import of, serving
from tests.tiny_release import Release, processes_that_name
from tests.under_load import changed, shuffle

WITHIN = {"stub": 30, "server": 60}  # seconds; on a quiet machine about 10 and 20


class Running(NamedTuple):
    url: str
    process: subprocess.Popen
    folder: Path


@pytest.fixture(scope="module")
def running(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """A `make serve` whose processes the tests kill."""
    folder = tmp_path_factory.mktemp("supervised")
    with serving(folder, *of(folder / "serving", release), "--no-browser") as (url, process):
        yield Running(url, process, folder / "serving")


class Asking:
    """A client that searches all the time: when each question was answered, or not."""

    def __init__(self, running: Running, text: str) -> None:
        self.url = f"{running.url}/api/search?text={quote(text)}"
        self.answered: list[tuple[float, int]] = []  # when, and the status
        self.stopped = Event()
        self.thread = Thread(target=self._ask)

    def _ask(self) -> None:
        while not self.stopped.is_set():
            self.answered.append((time.monotonic(), status(self.url)))
            time.sleep(0.02)

    def __enter__(self) -> "Asking":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    def until_answered(self, seconds: float) -> None:
        """Waits until a question is answered: one that met the dead may hang until its deadline."""
        deadline, num = time.monotonic() + seconds, len(self.answered)
        while len(self.answered) < num + 3 or self.answered[-1][1] != 200:
            assert time.monotonic() < deadline, self.answered[-10:]
            time.sleep(0.05)

    def seconds_down(self, since: float) -> float:
        """From `since` until questions are answered again, and go on to be."""
        return max((when for when, code in self.answered if when > since and code != 200), default=since) - since


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def processes_of(running: Running, kind: str) -> list[int]:
    """Triton's processes of this gateway whose command line names `kind`."""
    named = {pid: " ".join(command) for pid, command in commands().items()}
    return [pid for pid, it in named.items() if str(running.folder) in it and kind in it and "guard.py" not in it]


def until_ready(running: Running, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while status(f"{running.url}/readyz") != 200:
        assert time.monotonic() < deadline, (running.folder / "triton.log").read_text()[-2000:]
        time.sleep(0.1)


@pytest.mark.parametrize("victim", ["text_core", "tritonserver"])
def test_what_is_killed_under_load_is_back_in_seconds(victim: str, running: Running, release: Release) -> None:
    until_ready(running, 60)
    kind = "server" if victim == "tritonserver" else "stub"
    with Asking(running, release.truth.texts[0]) as asking:
        time.sleep(0.5)
        pids = processes_of(running, victim if kind == "stub" else "bin/tritonserver")
        assert pids
        killed = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        deadline = killed + WITHIN[kind]
        while status(f"{running.url}/readyz") == 200 and time.monotonic() < deadline - WITHIN[kind] / 2:
            time.sleep(0.05)  # until it is seen
        until_ready(running, WITHIN[kind])
        ready = time.monotonic() - killed
        asking.until_answered(30)
    failed = sum(code != 200 for _, code in asking.answered)
    print(f"{victim}: ready after {ready:.1f} s, searches after {asking.seconds_down(killed):.1f} s, {failed} failed")
    assert asking.seconds_down(killed) < WITHIN[kind]
    assert {code for _, code in asking.answered} <= {200, 500, 503}
    assert status(f"{running.url}/livez") == 200
    assert releases.current(running.folder) == release.id


@pytest.mark.slow
def test_after_a_rollback_and_a_reboot_the_old_release_serves(
    tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    old, new = tiny_releases
    arguments = of(tmp_path / "serving", old, new)
    with serving(tmp_path, *arguments, "--no-browser") as (_, process):
        roll_out(tmp_path / "serving", new.id)
        roll_back(tmp_path / "serving")
        for pid in [process.pid, *processes_of(Running("", process, tmp_path / "serving"), "")]:  # all at once
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    assert (tmp_path / "serving" / "running.json").exists()  # nobody tidied up
    with serving(tmp_path, *arguments, "--no-browser") as (url, _):
        assert status(f"{url}/readyz") == 200
        with urllib.request.urlopen(f"{url}/api/search?text={quote(old.truth.texts[0])}") as answer:
            assert json.load(answer)["release"] == old.id
    assert not processes_that_name(str(tmp_path / "serving" / "live"))
    assert not shared_memory(f"clip-{process.pid}-")


def test_more_repairs_than_can_be_chance_are_not_tried(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, "http://127.0.0.1:9")
    for _ in range(MAX_REPAIRS):
        supervisor.count_repair("it died")
    with pytest.raises(GaveUp, match=r"5 repairs in 0 s did not help: it died"):
        supervisor.count_repair("it died")


def test_when_repairs_do_not_help_it_ends_with_a_message_and_a_code(release: Release, tmp_path: Path) -> None:
    serving_folder = tmp_path / "serving"
    with serving(tmp_path, *of(serving_folder, release), "--no-browser") as (url, process):
        shutil.rmtree(serving_folder / "releases" / release.id / "golden")  # nothing to start again from
        for pid in processes_of(Running(url, process, serving_folder), "bin/tritonserver"):
            os.kill(pid, signal.SIGKILL)
        assert process.wait(60) == 1


def test_a_release_that_answers_wrongly_is_not_served_but_the_last_good_one(
    tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    good, other = tiny_releases
    wrong = changed(other, tmp_path / "wrong", shuffle)
    folder = tmp_path / "serving"
    for one in (good, other, wrong):
        releases.add(folder, one.folder, keep=None)
    releases.make_current(folder, wrong.id, "by hand, for the test")
    with (
        serving(tmp_path, "--serving", str(folder), "--no-browser") as (url, _),
        urllib.request.urlopen(f"{url}/api/search?text={quote(good.truth.texts[0])}") as answer,
    ):
        assert json.load(answer)["release"] == good.id
    assert releases.current(folder) == good.id
    failed = [event for event in releases.history(folder) if event.event == "failed"]
    assert [event.release for event in failed] == [wrong.id]
    assert "answers golden queries wrongly" in failed[0].why
