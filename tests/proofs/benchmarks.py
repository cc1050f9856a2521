"""Benchmarks at full size, from files to the table, with a tiny model: 5,008 x 29,806 and 50,000 x 1,000.

Each is measured twice: the second time nothing is encoded.
"""

import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import new_project
from tests.made_benchmarks import write_model
from tests.made_pairs import CHARACTERS, NUM_QUERIES, TRAIN, VALID, write_split
from tests.watched import size_of, watch

CLASSES, OF_EACH = 1000, 50


def prove() -> dict:
    """Seconds and peak memory of each benchmark, the first time and again, and its row."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        project = new_project(Path(scratch) / "project")
        data = project / "my_pairs"
        write_split(data / "MUGE", "valid", TRAIN[0], *VALID, NUM_QUERIES)
        write_imagenet(data / "ImageNet-1K")
        write_model(project / "model")
        print(f"made {size_of(data) / 2**30:.2f} GiB", flush=True)
        for name in ("muge_valid", "imagenet_zh"):
            command = ("-m", "stages.benchmark", "--names", name, "--models", "model", "--data", "my_pairs")
            first, again = (watch(project, sys.executable, *command) for _ in range(2))
            assert "encoded with" in first.said and "encoded with" not in again.said
            (row,) = [row for row in rows_of(project) if row["benchmark"] == name]
            found[name] = {
                "first": {"seconds": first.seconds, "peak_mib": first.peak_mib},
                "again": {"seconds": again.seconds, "peak_mib": again.peak_mib},
                "row": {key: row[key] for key in ("sizes", "metrics", "templates", "precision", "notes")},
            }
            print(json.dumps(found[name], ensure_ascii=False), flush=True)
    return found


def rows_of(project: Path) -> list[dict]:
    return json.loads((project / "reports" / "benchmarks" / "table.json").read_text(encoding="utf-8"))["rows"]


def write_imagenet(folder: Path) -> None:
    """`val/n00000000/...JPEG` and `label_cn.txt`, of which three names stand twice, as in the reference's."""
    names = [f"{CHARACTERS[i]}{CHARACTERS[i + 1]}" for i in range(CLASSES)]
    names[7], names[500], names[999] = names[8], names[501], names[3]
    folder.mkdir(parents=True)
    (folder / "label_cn.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_write_class, folder / "val"), range(CLASSES), chunksize=20))


def _write_class(folder: Path, number: int) -> None:
    place, draw = folder / f"n{number:08d}", np.random.default_rng((11, number))
    place.mkdir(parents=True)
    for i in range(OF_EACH):
        blocks = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        blocks.resize((96, 72), Image.Resampling.BICUBIC).save(place / f"ILSVRC2012_val_{number:04d}{i:04d}.JPEG")
