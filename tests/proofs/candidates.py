"""Exact search among up to a million pictures: seconds, and memory that does not grow with them.

`TEXTS=5000` in the environment asks so many; the default is 1,000.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.conftest import ROOT
from tests.watched import watch

SIZES, WIDTH, AT_ONCE = (10_000, 100_000, 1_000_000), 512, 50_000
MOST_MIB = 250  # above the start of Python; all scores of a million pictures would take 3.7 GiB, the pictures 2


def prove() -> dict:
    """For each number of pictures, what ranks and the best ten took; the truth is found where it was put."""
    num_texts = int(os.environ.get("TEXTS", "1000"))
    curve = {}
    with tempfile.TemporaryDirectory() as scratch:
        for num in SIZES:
            make(Path(scratch), num_texts, num)
            taken = watch(ROOT, sys.executable, "-m", "tests.proofs.candidates", scratch)
            curve[f"{num:,} pictures"] = {"seconds": float(taken.said.split()[-1]), "peak_mib": taken.peak_mib}
            print(num, curve[f"{num:,} pictures"], flush=True)
    assert max(row["peak_mib"] for row in curve.values()) < MOST_MIB
    return {"texts": num_texts, "width": WIDTH, "curve": curve}


def make(folder: Path, num_texts: int, num: int) -> None:
    """Random pictures in a file, and texts each of which is a picture and a little noise."""
    draw = np.random.default_rng(num)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.float32, (num, WIDTH))
    for start in range(0, num, AT_ONCE):
        rows = draw.normal(size=(min(AT_ONCE, num - start), WIDTH)).astype(np.float32)
        pictures[start : start + AT_ONCE] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pictures.flush()
    right = draw.choice(num, num_texts, replace=False)
    texts = pictures[right] + 0.02 * draw.normal(size=(num_texts, WIDTH)).astype(np.float32)
    np.save(folder / "texts.npy", texts / np.linalg.norm(texts, axis=1, keepdims=True))
    np.save(folder / "right.npy", right)


def find(folder: Path) -> None:
    """Prints the seconds that the search took."""
    from clip_core.evaluate.retrieval import retrieve

    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    texts, right = np.load(folder / "texts.npy"), np.load(folder / "right.npy")
    start = time.perf_counter()
    found = retrieve(texts, pictures, right[:, None], 10)
    print(round(time.perf_counter() - start, 2))
    assert (found.ranks == 1).all() and (found.places[:, 0] == right).all()


if __name__ == "__main__":
    find(Path(sys.argv[1]))
