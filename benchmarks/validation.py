"""The stage `validate` over photo-like pictures, against the limit: the same pictures only decoded, on all cores."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import packing
from benchmarks.command import read_options
from benchmarks.compare import compare
from benchmarks.report import keep, machine, spread
from clip_core.all_params import load_params
from clip_core.config.engine import Engine
from clip_core.config.validation import Validate
from clip_core.data.pairs import read_images

NUM = 20_000


def main() -> None:
    options = read_options("validation", repeats=5)
    folder = options.work / "packing"
    packing.prepare(folder, NUM)
    shared: dict = {"task": "validate", "folder": str(folder), "num": NUM, "threads": 1, "model": ""}
    name = f"{NUM:,} pictures validated / only decoded"
    found = compare({**shared, "side": "ours"}, {**shared, "side": "decoding"}, options.repeats)
    print(f"{name}: {spread(found['ratio'])} of the limit", flush=True)
    result = {"model": "validation", **machine(1), "rows": {name: {"num": NUM, **found}}}
    keep("validation", result, options.results)


def make(spec: dict) -> Callable[[], np.ndarray]:
    """Goes over all pictures in a run, and tells how many there are."""
    limits = load_params(Path("params.yaml")).validate_.model_copy(update={"baseline": None})
    os.chdir(spec["folder"])
    return (lambda: _validated(limits)) if spec["side"] == "ours" else _decoded


def _validated(limits: Validate) -> np.ndarray:
    from clip_core.data.pairs import read_pairs
    from stages import validate

    shutil.rmtree(".work", ignore_errors=True)
    folders = (Path(name) for name in ("valid", "quarantine-of-validate", "page"))
    engine = Engine(maps="local", processes=None, address=None)
    validate.main(validate.Params(validate=limits), engine, Path("raw"), *folders)
    return np.array([[read_pairs(Path("valid"))["image_id"].nunique()]])


def _decoded() -> np.ndarray:
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        return np.array([[sum(pool.map(_decode, sorted(Path("raw").glob("images-*.parquet"))))]])


def _decode(file: Path) -> int:
    number = 0
    for _, image in read_images(file):
        Image.open(BytesIO(image)).load()
        number += 1
    return number


if __name__ == "__main__":
    main()
