"""Near-duplicates of a million pictures: seconds, peak memory, and the exact answer on twenty thousand of them.

`PICTURES=100000` in the environment takes another size.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from clip_core.data.near import Looks, quarters_of
from tests.conftest import ROOT
from tests.watched import watch

DISTANCE, EXACT = 4, 20_000
AT_ONCE = 50_000
MOST_SECONDS, MOST_MIB = 120, 1536  # of a million


def prove() -> dict:
    """What finding the groups took, and how many there are."""
    num = int(os.environ.get("PICTURES", "1000000"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, num)
        taken = watch(ROOT, sys.executable, "-m", "tests.proofs.near", str(folder))
        make(folder, EXACT)
        assert np.array_equal(groups(folder), compared_with_all(folder))
    assert taken.seconds < MOST_SECONDS
    assert taken.peak_mib < MOST_MIB
    seconds, num_groups, resident = taken.said.split()
    assert float(resident) < MOST_MIB
    return {
        "pictures": num,
        "groups": int(num_groups),
        "equal_to_a_look_at_every_pair_of": EXACT,
        "seconds": taken.seconds,
        "seconds_without_start": float(seconds),
        "peak_mib": taken.peak_mib,
        "peak_mib_with_mapped_files": float(resident),
    }


def make(folder: Path, num: int) -> None:
    """A tenth flat, which share one hash and differ in colour; a fifth copies of others with a few bits and levels of
    noise; the rest alone."""
    draw = np.random.default_rng(1)
    hashes, num_flat, num_copies = draw.integers(0, 2**64, num, dtype=np.uint64), num // 10, num // 5
    thumbnails = np.memmap(folder / "thumbnails", np.uint8, "w+", shape=(num, 768))
    for start in range(0, num, AT_ONCE):
        blocks = draw.integers(0, 256, (min(AT_ONCE, num - start), 48), dtype=np.uint8)
        thumbnails[start : start + AT_ONCE] = blocks.repeat(16, axis=1)
    hashes[:num_flat] = 0
    thumbnails[:num_flat] = np.tile(draw.integers(0, 256, (num_flat, 3), dtype=np.uint8), 256)
    for start in range(num - num_copies, num, AT_ONCE):
        copies = np.arange(start, min(start + AT_ONCE, num))
        of = np.sort(draw.integers(num_flat, num - num_copies, len(copies)))
        noise = draw.integers(-4, 5, (len(copies), 768), dtype=np.int16)
        thumbnails[copies] = (thumbnails[of] + noise).clip(0, 255)
        hashes[copies] = hashes[of]
        for _ in range(5):  # so that some are too far
            bits = np.uint64(1) << draw.integers(0, 64, len(copies), dtype=np.uint64)
            hashes[copies] ^= np.where(draw.random(len(copies)) < 0.7, bits, np.uint64(0))
    np.save(folder / "hashes.npy", hashes)


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.load(folder / "hashes.npy")
    return hashes, np.memmap(folder / "thumbnails", np.uint8, "r", shape=(len(hashes), 768))


def groups(folder: Path) -> np.ndarray:
    hashes, thumbnails = read(folder)
    # read, not mapped: the stage sees each while it writes them
    parts = (np.fromfile(folder / "thumbnails", np.uint8, AT_ONCE * 768, offset=start * 768)
             for start in range(0, len(hashes), AT_ONCE))  # fmt: skip
    quarters = np.concatenate([quarters_of(part) for part in parts])
    return Looks(hashes, quarters, thumbnails, DISTANCE).leaders(np.arange(len(hashes)))


def compared_with_all(folder: Path) -> np.ndarray:
    """The representatives, by a comparison of each with all that have none yet."""
    hashes, thumbnails = read(folder)
    found = np.full(len(hashes), -1)
    for row in range(len(hashes)):
        if found[row] < 0:
            others = np.flatnonzero((found < 0) & (np.bitwise_count(hashes ^ hashes[row]) <= DISTANCE))
            difference = np.abs(thumbnails[others].astype(np.int16) - thumbnails[row])
            found[others[(difference.mean(1) <= 3) & (difference.max(1) <= 32)]] = row
    return found


if __name__ == "__main__":
    import resource
    import time

    begun = time.monotonic()
    representatives = groups(Path(sys.argv[1]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.monotonic() - begun:.1f} {len(np.unique(representatives))} {peak:.0f}")
