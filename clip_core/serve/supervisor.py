"""Looks after the Triton server of a gateway: asks every model every few seconds, heals what does not answer.

Triton 2.51 starts a Python stub that died never again, and calls it ready: every call then fails. Unloading and loading
the model heals it. A server that died is started again.
"""

import shutil
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import numpy as np
from tritonclient.utils import InferenceServerException

from clip_core.errors import UserError
from clip_core.serve import live, releases
from clip_core.serve.assemble import PUBLIC
from clip_core.serve.golden import Golden, read_golden
from clip_core.serve.queries import ask, question
from clip_core.serve.rollout import settle
from clip_core.serve.triton import RunningTriton, Triton, start_triton

EVERY_SECONDS = 2.0
PATIENCE = 5.0  # seconds for the answer to a synthetic question
HANGS_SECONDS = 30  # a model that answers nobody for so long, though it is asked, hangs
MAX_FAILURES = 2
ASKS = {"clip_search": ("text",), "clip_similar": ("image",), "clip_classify": ("text", "image")}  # the towers
MAX_REPAIRS, WITHIN_SECONDS = 5, 600  # more of them would hide a fault that somebody has to look at


FAILURES = (UserError, InferenceServerException)


class GaveUp(RuntimeError):
    """Repairs do not help any more."""


class Supervisor:
    """The Triton server that serves what `serving/current` names, started and looked after."""

    def __init__(self, serving: Path, url: str) -> None:
        self.serving, self.url = serving, url
        self.states: dict[str, str] = dict.fromkeys(PUBLIC, "not asked yet")
        self.running: RunningTriton | None = None
        self._repairs: deque[float] = deque(maxlen=MAX_REPAIRS)
        self._failures = 0  # of the server as a whole, one after the other
        self._silent: dict[str, tuple[int, float]] = {}  # model -> how many questions it has answered, and since when
        self._numbers = count()
        self._golden: tuple[str, Golden] | None = None  # of the release that was asked last

    @property
    def address(self) -> str:
        """Where Triton answers gRPC; empty while it does not run."""
        return self.running.server.address if self.running else ""

    @property
    def release(self) -> str | None:
        """The one that is public."""
        return releases.current(self.serving)

    def start(self) -> None:
        """Starts Triton and serves the current release; where that is not what was proved, the last good one."""
        with releases.only_rollout(self.serving):
            current = releases.current(self.serving)
            assert current is not None
            good = [current, *releases.have_served(self.serving)]
            for release in good:
                try:
                    self._start_with(release)
                except FAILURES as error:  # it does not verify, does not load or answers wrongly
                    self.stop()
                    releases.record(self.serving, "failed", release, str(error))
                    print(f"release {release} can not serve: {error}", flush=True)
                else:
                    return
        raise UserError(f"none of the releases {', '.join(good)} can serve; the reasons stand above")

    def stop(self) -> None:
        """Ends Triton, if it runs."""
        running, self.running = self.running, None
        if running:
            running.stop()
        shutil.rmtree(self._live, ignore_errors=True)

    def watch(self, stopped: threading.Event) -> None:
        """Looks after the server until `stopped`; raises GaveUp when that does not help."""
        took = 0.0
        while not stopped.wait(max(EVERY_SECONDS, 4 * took)):  # a large model is asked less often
            started = time.monotonic()
            self.check()
            took = 0.0 if self._failures else time.monotonic() - started

    def check(self) -> None:
        """Asks every model once, and repairs what does not answer."""
        assert self.running is not None
        if self.running.process.poll() is not None:
            self._start_again(f"Triton ended (exit code {self.running.process.returncode})")
            return
        try:
            with closing(Triton(self.running.server)) as triton:
                self._look(triton)
            self._failures = 0
        except FAILURES as error:  # it does not answer, or what was loaded again answers wrongly
            self._failures += 1
            self.states = dict.fromkeys(PUBLIC, str(error))
            if self._failures == MAX_FAILURES:
                self._failures = 0
                self._start_again(str(error))

    def _look(self, triton: Triton) -> None:
        release = releases.current(self.serving)
        assert release is not None
        if self._golden is None or self._golden[0] != release:
            self._golden = release, read_golden(self._folder(release) / "golden")
        golden = self._golden[1]
        # A text of its own each time: the answer to one that was asked before comes from the cache.
        asked = f"{next(self._numbers)} {golden.texts[0]}".encode(), golden.images[0]
        _, unanswered = ask_at_once(triton, {name: (question(name, *asked), "release") for name in PUBLIC})
        self.states = {name: unanswered.get(name, "ok") for name in PUBLIC}
        wrong = broken_links(triton, release, *asked) if unanswered else {}
        dead = [name for name, error in wrong.items() if self._is_dead(triton, name, error)]
        begun = releases.canary(self.serving)
        is_one = live.public_release(triton) == release
        if not dead and is_one and not live.others(triton, release, begun and begun.release):
            return
        with suppress(releases.Held), releases.only_rollout(self.serving):  # a rollout at work knows what it does
            if releases.current(self.serving) != release:
                return
            if dead:
                reasons = "; ".join(f"{name}: {wrong[name]}" for name in dead)
                self.count_repair(reasons)
                print(f"models are loaded again: {reasons}", flush=True)
            for name in dead:
                triton.revive(name)
            settle(triton, self.serving)
            live.probe_public(triton, self._folder(release), release)
            print(f"release {release} serves", flush=True)
            self.states = dict.fromkeys(PUBLIC, "ok")

    def _is_dead(self, triton: Triton, model: str, error: str) -> bool:
        """Whether the model will never answer again; under much load it does, later."""
        if "is not healthy" in error:  # what Triton says of a stub that ended
            return True
        done = triton.num_answered(model)
        if self._silent.get(model, (None, 0))[0] != done:
            self._silent[model] = done, time.monotonic()
        return time.monotonic() - self._silent[model][1] > HANGS_SECONDS

    def _start_again(self, why: str) -> None:
        self.states = dict.fromkeys(PUBLIC, why)
        self.count_repair(why)
        print(f"Triton is started again: {why}", flush=True)
        self.stop()
        while True:
            try:
                self.start()
                return
            except releases.Held:  # by a rollout, which ends without a server soon
                time.sleep(0.5)
            except UserError as error:
                raise GaveUp(str(error)) from None

    def count_repair(self, why: str) -> None:
        """Raises GaveUp when there were too many already."""
        now = time.monotonic()
        if len(self._repairs) == MAX_REPAIRS and now - self._repairs[0] < WITHIN_SECONDS:
            raise GaveUp(f"{MAX_REPAIRS} repairs in {now - self._repairs[0]:.0f} s did not help: {why}")
        self._repairs.append(now)

    def _start_with(self, release: str) -> None:
        folder = releases.verified(self.serving, release)
        shutil.rmtree(self._live, ignore_errors=True)  # of a run that was killed
        (self._live / "repository").mkdir(parents=True)
        self.running = start_triton(self._live / "repository", self.serving / "triton.log")
        with closing(Triton(self.running.server)) as triton:
            live.load(triton, folder, release)
            live.probe_release(triton, folder, release)
            if release != releases.current(self.serving):
                releases.make_current(self.serving, release, "the last good one")
            settle(triton, self.serving)
        releases.write_server(self.serving, self.running.server, self.url)
        self.states = dict.fromkeys(PUBLIC, "ok")

    def _folder(self, release: str) -> Path:
        return releases.folder_of(self.serving, release)

    @property
    def _live(self) -> Path:
        return self.serving / "live"


def broken_links(triton: Triton, release: str, text: bytes, image: bytes) -> dict[str, str]:
    """The release's models that do not answer, each with the reason; of a chain the first, which fails the others."""
    suffix = f"_{release}"
    towers = {
        tower: (tensor, question(f"clip_{tower}", text, image))
        for tower, tensor in (("text", "token_ids"), ("image", "pixels"))
    }
    prepared, wrong = ask_at_once(
        triton, {f"{tower}_preprocess{suffix}": (asked, tensor) for tower, (tensor, asked) in towers.items()}
    )
    features, more = ask_at_once(
        triton,
        {
            f"{tower}_core{suffix}": ({tensor: prepared[before]}, f"{tower}_features")
            for tower, (tensor, _) in towers.items()
            if (before := f"{tower}_preprocess{suffix}") in prepared
        },
    )
    wrong |= more
    rest = {
        f"{model}{suffix}": (question(model, text, image), "release")
        for model, asks in ASKS.items()
        if all(f"{tower}_core{suffix}" in features for tower in asks)
    }
    return wrong | ask_at_once(triton, rest)[1]


def ask_at_once(
    triton: Triton, questions: dict[str, tuple[dict[str, np.ndarray], str]]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The models' answers to (tensors, output), and of those that give none the reasons."""
    answers, wrong = {}, {}

    def ask_one(model: str) -> None:
        tensors, output = questions[model]
        try:
            (answers[model],) = ask(triton.client, model, tensors, [output], PATIENCE)
        except FAILURES as error:
            wrong[model] = str(error)

    with ThreadPoolExecutor(len(questions) or 1) as threads:
        list(threads.map(ask_one, questions))
    return answers, wrong
