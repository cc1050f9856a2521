"""Top 10 and recall of 5,000 texts among 30,000 pictures, from files of features, against cn_clip's own scripts.

cn_clip: `make_topk_predictions` and `evaluation`, run whole; where there is no GPU, `.cuda()` gives the tensor itself.
Both sides read features, write the predictions and score them; the start of Python and torch counts on neither. Other
rows: only reading the pictures' features, and the search against the bare matrix product.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.command import read_options
from benchmarks.compare import compare
from benchmarks.report import keep, machine, spread

WIDTH, TOP_K = 512, 10
NOISE = 3.0  # times the length of what it is added to: about half of the texts find their picture
Run = Callable[[], np.ndarray]


def main() -> None:
    options = read_options("recall", repeats=3, texts=5000, images=30_000)
    num_texts, num_images = options.texts, options.images
    folder = options.work / f"recall-{num_texts}-{num_images}"
    prepare(folder, num_texts, num_images)
    shared: dict = {"task": "recall", "folder": str(folder), "threads": options.threads, "model": ""}
    sizes = f"{num_texts:,} x {num_images:,} x {WIDTH}"
    rows = {
        f"{sizes}: top {TOP_K} and recall from files / cn_clip's scripts": ("files", "scripts", num_texts),
        f"{num_images:,} features read from npy / from JSONL as cn_clip does": ("npy", "jsonl", num_images),
        f"{sizes}: top {TOP_K} and ranks / the bare matrix product": ("ranks", "product", num_texts),
    }
    measured = {}
    for name, (ours, peer, num) in rows.items():
        if options.only in name:
            found = compare({**shared, "side": ours}, {**shared, "side": peer}, options.repeats)
            measured[name] = {"num": num, **found}
            print(f"{name}: {spread(found['ratio'])} times as fast", flush=True)
    result = {"model": "recall", **machine(options.threads), "rows": measured}
    keep("recall", result, options.results)


def prepare(folder: Path, num_texts: int, num_images: int) -> None:
    """The features in both formats, and which picture each text has; not timed."""
    from clip_core.evaluate.feature_files import write_features

    if (folder / "truth.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    images = _unit(draw.normal(size=(num_images, WIDTH)))
    right = draw.integers(num_images, size=num_texts)
    texts = _unit(images[right] + NOISE * _unit(draw.normal(size=(num_texts, WIDTH))))
    for key, features in (("image_id", images), ("text_id", texts)):
        for suffix in (".npy", ".jsonl"):
            ids = [str(number) for number in range(len(features))]
            write_features(folder / f"{key}{suffix}", ids, features, "random", key)
    lines = [json.dumps({"text_id": text, "image_ids": [int(image)]}) for text, image in enumerate(right)]
    (folder / "truth.jsonl").write_text("\n".join(lines), encoding="utf-8")


def make(spec: dict) -> Run:
    """The run of one side; it returns the pictures found, or what was read."""
    os.chdir(spec["folder"])
    return {
        "files": _ours,
        "scripts": _cn_clip,
        "npy": lambda: _read("image_id"),
        "jsonl": _read_as_cn_clip,
        "ranks": _ranks,
        "product": _product,
    }[spec["side"]]


def _ours() -> np.ndarray:
    from clip_core.evaluate.predictions import hits_of, search
    from clip_core.evaluate.records import read_answers

    predictions = Path("ours.jsonl")
    search(Path("image_id.npy"), Path("text_id.npy"), predictions, TOP_K)
    recalls = hits_of(predictions, *read_answers(Path("truth.jsonl"))).mean(axis=0)  # theirs has no intervals
    assert np.isfinite(recalls).all()
    return _found(predictions)


def _cn_clip() -> np.ndarray:
    import torch

    find = ["--image-feats", "image_id.jsonl", "--text-feats", "text_id.jsonl", "--output", "theirs.jsonl"]
    on_device = torch.Tensor.cuda if torch.cuda.is_available() else lambda tensor: tensor
    for script, arguments in (
        ("make_topk_predictions", [*find, "--top-k", str(TOP_K)]),
        ("evaluation", ["truth.jsonl", "theirs.jsonl", "score.json"]),
    ):
        with patch.object(torch.Tensor, "cuda", on_device), patch.object(sys, "argv", [script, *arguments]):
            runpy.run_module(f"cn_clip.eval.{script}", run_name="__main__")
    assert json.loads(Path("score.json").read_bytes())["success"]
    return _found(Path("theirs.jsonl"))


def _found(predictions: Path) -> np.ndarray:
    lines = predictions.read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line)["image_ids"] for line in lines])


def _read(key: str) -> np.ndarray:
    from clip_core.evaluate.feature_files import read_features

    return read_features(Path(f"{key}.npy")).features


def _read_as_cn_clip() -> np.ndarray:
    """The lines of make_topk_predictions.py that read the pictures."""
    image_ids, image_feats = [], []
    with open("image_id.jsonl") as fin:  # noqa: PTH123, PLW1514
        for line in fin:
            obj = json.loads(line.strip())
            image_ids.append(obj["image_id"])
            image_feats.append(obj["feature"])
    return np.array(image_feats, dtype=np.float32)


def _ranks() -> np.ndarray:
    from clip_core.evaluate.retrieval import retrieve

    right = _found(Path("truth.jsonl"))
    return retrieve(_read("text_id"), _read("image_id"), right, TOP_K).places[:, :1]


def _product() -> np.ndarray:
    scores = np.load("text_id.npy") @ np.load("image_id.npy").T
    return scores[:, :1].astype(np.int64)  # not searched


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
