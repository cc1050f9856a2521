"""How busy other processes keep the machine while something is measured, from /proc."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TICK = 1 / os.sysconf("SC_CLK_TCK")


class Moment(NamedTuple):
    time: float
    all: float  # seconds of CPU that the machine has spent, also for other machines on the same host (steal)
    own: float  # those of our processes


def now(pids: Iterable[int]) -> Moment:
    """The clock and the seconds of CPU spent so far, by all and by the processes `pids` and what they have started.

    The time of a process that has ended is its parent's; give each moment the `family` as it is then.
    """
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    )
    own = sum(_spent(pid) for pid in pids)
    return Moment(time.monotonic(), (user + nice + system + irq + softirq + steal) * TICK, own * TICK)


def other_cores(start: Moment, end: Moment) -> float:
    """The cores that others kept busy between the two moments."""
    return max(0.0, ((end.all - start.all) - (end.own - start.own)) / (end.time - start.time))


def family(pid: int) -> list[int]:
    """The process and all that it has started, directly or not."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parents[int(file.parent.name)] = int(file.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found


def _spent(pid: int) -> int:
    with suppress(OSError):  # it ended meanwhile
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return sum(map(int, fields[11:15]))  # of all its threads, and of what it started and that ended
    return 0
