"""Clients that ask at the same time, each its share of the questions one by one: how long each answer takes."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np

from benchmarks.compare import MAX_OTHER_CORES, spread_of
from benchmarks.noise import family, now, other_cores

A = TypeVar("A")
T = TypeVar("T")


def ask_at_once(
    connected: Callable[[], AbstractContextManager[Callable[[str], A]]], questions: Sequence[str], clients: int
) -> tuple[np.ndarray, list[A]]:
    """The seconds that each question takes, and the answers, a client's after the other's; each has a connection."""

    def ask(some: Sequence[str]) -> list[tuple[float, A]]:
        with connected() as answer:
            return [timed(answer, question) for question in some]

    with ThreadPoolExecutor(clients) as threads:
        done = [one for some in threads.map(ask, [questions[i::clients] for i in range(clients)]) for one in some]
    return np.array([seconds for seconds, _ in done]), [found for _, found in done]


def timed(answer: Callable[[str], A], question: str) -> tuple[float, A]:
    start = time.perf_counter()
    found = answer(question)
    return time.perf_counter() - start, found


def quietest(measure: Callable[[], T], repeats: int) -> list[tuple[float, T]]:
    """What is measured, so many times, each beside the cores that others kept busy; one they disturbed is taken again.

    What was started before, as a Triton, is ours.
    """
    taken: list[tuple[float, T]] = []
    for _ in range(2 * repeats):
        start = now(family(os.getpid()))
        found = measure()
        taken.append((other_cores(start, now(family(os.getpid()))), found))
        if sum(others <= MAX_OTHER_CORES for others, _ in taken) == repeats:
            break
    return sorted(taken, key=lambda one: one[0])[:repeats]


def row_of(
    ours: str, peer: str, taken: list[tuple[float, dict[str, np.ndarray]]], clients: int, agreement: dict[str, float]
) -> dict:
    """A row of the result: of the seconds of each question, by side, that clients took who were busy all the time."""
    others, found = [one for one, _ in taken], [seconds for _, seconds in taken]
    row = {
        "num": len(found[0][ours]),
        "ratio": spread_of([seconds[peer].sum() / seconds[ours].sum() for seconds in found]),
        "our_seconds": spread_of([seconds[ours].sum() / clients for seconds in found]),
        "peer_seconds": spread_of([seconds[peer].sum() / clients for seconds in found]),
        **noise_of(others),
        "agreement": agreement,
    }
    for part in (50, 99):
        row[f"our_p{part}"] = spread_of([float(np.percentile(seconds[ours], part)) for seconds in found])
        row[f"peer_p{part}"] = spread_of([float(np.percentile(seconds[peer], part)) for seconds in found])
    return row


def noise_of(others: list[float]) -> dict:
    """What a row says of the other processes: the cores that they kept busy in each repeat."""
    return {
        "other_cores": spread_of(others),
        "repeats": len(others),
        "disturbed": sum(one > MAX_OTHER_CORES for one in others),
    }
