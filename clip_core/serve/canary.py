"""A canary in the gateway: some callers are asked of another release than the public one, until it does worse.

Which release and how many callers the history of the folder of releases says (`clip_core.serve.rollout --canary`).
"""

import hashlib
import logging
import threading
from collections import Counter, deque
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from clip_core.config.gateway import CanaryLimits
from clip_core.serve import releases

Fault = Literal["errors", "empty"]
REASONS = ("errors", "empty", "slow", "limits")  # for which one is given up

log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """A question to a model that was answered, or was not."""

    seconds: float
    fault: Fault | None


class Canary:
    """The canary of a folder of releases: who is asked of it, how it does beside the public one, and its end."""

    def __init__(self, serving: Path, limits: CanaryLimits | None) -> None:
        self.serving, self.limits = serving, limits
        self.num_aborts: Counter[str] = Counter()  # by reason
        self._stamp: tuple[int, int] | None = None
        self._begun: releases.Begun | None = None
        self._aborted: releases.Begun | None = None
        self._seen: dict[tuple[str, bool], deque[Seen]] = {}  # by model, and whether it is the canary's

    def now(self) -> releases.Begun | None:
        """The canary that is under way."""
        if (stamp := self._history()) != self._stamp:
            self._stamp, before = stamp, self._begun
            self._begun = releases.canary(self.serving)
            if self._begun != before:
                self._seen.clear()
        if self._begun == self._aborted:  # that it is written down may take a moment
            return None
        if self._begun and self.limits is None:
            self._abort(self._begun, "limits", "the gateway has none; start it with --params params.yaml")
            return None
        return self._begun

    def release_for(self, caller: str) -> str | None:
        """The canary's id when the caller belongs to its share, of which it then always is; None: the public one."""
        if (begun := self.now()) is None:
            return None
        drawn = hashlib.sha256(f"{begun.release} {caller}".encode()).digest()
        return begun.release if int.from_bytes(drawn[:8]) < begun.share * 2**64 else None

    def saw(self, model: str, release: str | None, seen: Seen) -> None:
        """Counts a question to the model of the canary (None: of the public release), and judges."""
        begun = self.now()
        if begun is None or self.limits is None or release not in (None, begun.release):
            return
        window = self._seen.setdefault((model, release is not None), deque(maxlen=self.limits.window))
        window.append(seen)
        if release is None:
            return
        public = self._seen.get((model, False), deque())
        for reason, why in _worse(window, public, self.limits):
            self._abort(begun, reason, f"{model}: {why}")
            return
        if len(window) == self.limits.window:
            window.clear()  # it has passed, and the next one is judged for itself

    def _abort(self, begun: releases.Begun, reason: str, why: str) -> None:
        self._aborted = begun
        self.num_aborts[reason] += 1
        log.error("canary %s is aborted: %s", begun.release, why)
        # Written by a thread: no answer waits for the disk. Who looks after Triton unloads it then.
        threading.Thread(target=releases.record, args=(self.serving, "aborted", begun.release, why)).start()

    def _history(self) -> tuple[int, int] | None:
        try:
            stat = (self.serving / "history.jsonl").stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_ino


def _worse(canary: deque[Seen], public: deque[Seen], limits: CanaryLimits) -> list[tuple[str, str]]:
    """In what the canary does worse than it may, and the figures; speed is compared when both windows are full."""
    found = []
    for fault, more in (("errors", limits.max_more_errors), ("empty", limits.max_more_empty)):
        num = sum(one.fault == fault for one in canary)
        usual = sum(one.fault == fault for one in public) / max(1, len(public))
        if num > (usual + more) * limits.window:  # of all the window, so that it need not be full
            found.append((fault, f"{fault} in {num} of {len(canary)} answers; the public release: {usual:.1%}"))
    if len(canary) == len(public) == limits.window:
        p99, usual = (float(np.quantile([one.seconds for one in window], 0.99)) for window in (canary, public))
        if p99 > limits.max_slowdown * usual:
            found.append(("slow", f"p99 of {p99:.3f} s; the public release: {usual:.3f} s"))
    return found
