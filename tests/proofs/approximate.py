"""A million pictures, searched exactly and by FAISS: build, bytes, memory, p50 and p99 of one question, recall@10.

`PICTURES=100000` in the environment takes so many. Texts lie apart from all pictures, as a CLIP's do; asking
with pictures is measured as well.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.conftest import ROOT
from tests.watched import watch

WIDTH, QUESTIONS, AT_ONCE = 512, 500, 50_000
LEAST = 0.9  # recall of the texts' top ten


def prove() -> dict:
    """Of each kind of index what it takes, and what it finds of the exact top ten."""
    num = int(os.environ.get("PICTURES", "1000000"))
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), num)
        for kind in ("exact", "hnsw", "ivf_pq"):
            taken = watch(ROOT, sys.executable, "-m", "tests.proofs.approximate", kind, scratch)
            found[kind] = json.loads(taken.said.splitlines()[-1]) | {"build_peak_mib": taken.peak_mib}
            asked = watch(ROOT, sys.executable, "-m", "tests.proofs.approximate", f"ask-{kind}", scratch)
            found[kind] |= json.loads(asked.said.splitlines()[-1])
            found[kind]["passes"] = found[kind]["recall_of_texts"] >= LEAST  # as the stage `index` would say
            print(kind, found[kind], flush=True)
    assert found["exact"]["passes"] and found["hnsw"]["passes"]
    return {"pictures": num, "width": WIDTH, "questions": QUESTIONS, "kinds": found}


def make(folder: Path, num: int) -> None:
    """Pictures in bunches of about fifty, whose directions matter less and less, and questions of both kinds."""
    draw = np.random.default_rng(7)
    scale = np.arange(1, WIDTH + 1) ** -0.4
    centres = draw.normal(size=(max(num // 50, 1), WIDTH)) * scale
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.float32, (num, WIDTH))
    for start in range(0, num, AT_ONCE):
        size = min(AT_ONCE, num - start)
        rows = centres[draw.integers(len(centres), size=size)] + 0.5 * draw.normal(size=(size, WIDTH)) * scale
        pictures[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pictures.flush()
    apart = 2 * draw.normal(size=WIDTH) * scale
    for name, rows in (
        ("texts", centres[draw.integers(len(centres), size=QUESTIONS)] + apart),
        ("images", pictures[draw.integers(num, size=QUESTIONS)]),
    ):
        rows = rows + 0.5 * draw.normal(size=rows.shape) * scale * np.linalg.norm(rows) / len(rows) ** 0.5 / WIDTH**0.5
        np.save(folder / f"{name}.npy", (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def build_one(kind: str, folder: Path) -> dict:
    """Builds the index; nothing is built for exact search."""
    from clip_core.serve import approximate

    start, file = time.perf_counter(), folder / f"{kind}.faiss"
    if kind in ("hnsw", "ivf_pq"):
        approximate.build(kind, np.load(folder / "pictures.npy", mmap_mode="r"), file)
    num_bytes = (folder / "pictures.npy").stat().st_size + (file.stat().st_size if file.exists() else 0)
    seconds = {"build_seconds": time.perf_counter() - start, "processor_seconds": time.process_time()}
    return {name: round(value, 1) for name, value in seconds.items()} | {"mib_on_disk": num_bytes >> 20}


def ask(kind: str, folder: Path) -> dict:
    """Asks each question alone, and compares with the exact answers."""
    from clip_core.serve.approximate import Approximate
    from clip_core.serve.index import Index, recall_of

    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    opened = None if kind == "exact" else Approximate(folder / f"{kind}.faiss", pictures)
    index, result = Index(pictures, [], "", 1.0, opened), {}
    for name in ("texts", "images"):
        questions, places, seconds = np.load(folder / f"{name}.npy"), [], []
        for question in questions:
            start = time.perf_counter()
            places.append(index.top_k(question[None], 10)[0][0])
            seconds.append(time.perf_counter() - start)
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        result |= {f"p50_ms_{name}": round(p50, 2), f"p99_ms_{name}": round(p99, 2)}
        if name == "texts":
            result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # with pages of files
        result[f"recall_of_{name}"] = round(float(recall_of(pictures, questions, np.array(places))), 4)
    return result


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(ask(what.removeprefix("ask-"), place) if what.startswith("ask-") else build_one(what, place)))
