"""Seeded damage to a good file: whatever is read of it, a reader says so in rows or with UserError, and soon."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_core.errors import UserError

SECONDS = 5.0  # for one damaged file


def damaged(content: bytes, seed: int) -> bytes:
    """The content with one or two bytes changed and, every fourth time, cut."""
    random = np.random.default_rng(seed)
    changed = bytearray(content)
    for at in random.integers(0, len(content), random.integers(1, 3)):
        changed[at] = random.integers(0, 256)
    return bytes(changed[: random.integers(0, len(content))] if seed % 4 == 0 else changed)


def refused_or_read(file: Path, num_seeds: int, read: Callable[[], object]) -> tuple[int, int]:
    """How many of the damaged versions of the file were refused, and how many read; another error is the caller's."""
    content, refused = file.read_bytes(), 0
    for seed in range(num_seeds):
        file.write_bytes(damaged(content, seed))
        start = time.monotonic()
        try:
            read()
        except UserError as error:
            assert file.name in str(error), f"seed {seed}: {error}"
            refused += 1
        assert time.monotonic() - start < SECONDS, f"seed {seed}"
    file.write_bytes(content)
    return refused, num_seeds - refused
