"""`kill -9` of a rollout at each of its steps, under load, and what puts things right afterwards."""

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from clip_core.serve import live, releases
from clip_core.serve.assemble import PUBLIC
from clip_core.serve.queries import release_behind, search
from clip_core.serve.rollout import roll_out
from clip_core.serve.supervisor import Supervisor
from clip_core.serve.triton import Triton
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny_release import Release
from tests.under_load import Clients, server_of

STEPS = ("verify", "settle", "begin", "load", "probe", "publish", "probe public", "make current", "unload")
# Also in the midst of the two steps that ask Triton for several things: when so many of them are done.
MIDST = [("load", "1"), ("load", "4"), ("load", "6"), ("publish", "1"), ("publish", "2")]
KILLS = [(step, when) for step in STEPS for when in ("before", "after")] + MIDST

KILLED = """
import os, signal, sys
from pathlib import Path
from clip_core.serve.rollout import roll_out
from clip_core.serve.triton import Triton

serving, release, step, when = sys.argv[1:]
loads, num_loaded = Triton.load, 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run(name, do):
    global num_loaded
    if name == step and when == "before":
        die()
    if name == step and when.isdecimal():
        def load(self, model):
            global num_loaded
            loads(self, model)
            num_loaded += 1
            if num_loaded == int(when):
                die()
        Triton.load = load
    result = do()
    if name == step and when == "after":
        die()
    return result


roll_out(Path(serving), release, run)
"""


class Outcome(NamedTuple):
    """A row of the table: what a killed rollout left, and what became of it."""

    step: str
    when: str  # before or after the step, or after so many models
    current: str  # old or new, as `serving/current` names it after the kill
    public: str  # old or new, or both: of which releases the public names then answer
    put_right_by: str
    serves: str  # old or new, in the end
    failed_requests: int
    mixed_answers: int


def kill_rollout(serving: Path, release: str, step: str, when: str) -> None:
    """A rollout in a process of its own that is killed at that moment."""
    command = [sys.executable, "-c", KILLED, str(serving.absolute()), release, step, when]
    process = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, f"{step}, {when}: {process.returncode}\n{process.stderr}"


def outcome_of_a_kill(
    running: Supervisor, both: tuple[Release, Release], step: str, when: str, put_right_by: str
) -> Outcome:
    """Rolls out the release of the two that does not serve, kills that, and has it put right.

    Asserts that nothing but the two proved releases was ever public, and that folder and Triton agree in the end.
    """
    old = releases.current(running.serving)
    (new,) = (release.id for release in both if release.id != old)
    names = {old: "old", new: "new"}
    with Clients(server_of(running), both) as clients:
        kill_rollout(running.serving, new, step, when)
        current = releases.current(running.serving)
        with closing(Triton(server_of(running))) as triton:
            asked = both[0].truth.texts[0].encode(), both[0].store.image_bytes(0)
            public = {release_behind(triton.client, name, *asked) for name in PUBLIC}
            assert public <= {old, new}
            for release in public - {old}:  # what is public was asked before
                live.probe_release(triton, releases.folder_of(running.serving, release), release)
        if put_right_by == "the gateway":
            running.check()
        elif put_right_by == "the next rollout":
            roll_out(running.serving, current)
    if put_right_by == "the next start":
        running.stop()
        running.start()
    with closing(Triton(server_of(running))) as triton:
        serves = search(triton.client, [both[0].truth.texts[0]])[0].release
        assert serves == releases.current(running.serving) == current == live.public_release(triton)
        ready = {name.rpartition("_")[2] for name, state in triton.states().items() if state == "READY"}
        assert ready - {name.removeprefix("clip_") for name in PUBLIC} == {serves}
    last = [event.release for event in releases.history(running.serving) if event.event == "serves"][-1]
    assert last == serves
    seen = "both" if len(public) == 2 else names[next(iter(public))]
    return Outcome(
        step, when, names[current], seen, put_right_by, names[serves], len(clients.failed), len(clients.mixed)
    )
