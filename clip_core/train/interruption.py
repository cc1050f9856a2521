"""SIGTERM, SIGINT, SIGUSR1 (of spot machines and job queues): the step at work is finished and saved, then it ends."""

import signal
import sys
import threading
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interruption:
    """Within the block a first signal is only noted; a second one does what it does elsewhere."""

    def __init__(self) -> None:
        self.signal = 0  # which one has come; 0: none
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # signals are handled there alone
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
        print(f"{signal.Signals(number).name}: the step at work is finished and saved first", file=sys.stderr)

    def end(self, step: int, num_steps: int) -> None:
        """Ends the process as the signal would have; where another rank has got it, as SIGTERM."""
        number = self.signal or signal.SIGTERM
        print(f"stopped after step {step} of {num_steps}, which is saved; called again, the training goes on there")
        raise SystemExit(128 + number)
