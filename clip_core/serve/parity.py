"""Whether the exported towers compute what torch computes.

The two runtimes meet in files: the exporting process (torch, no onnxruntime) writes what it expects, and
`python -m clip_core.serve.parity` (onnxruntime, no torch) compares. Both make the same inputs.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from clip_core.config.export import Export, Precision
from clip_core.errors import UserError
from clip_core.inference.nearest import top_k
from clip_core.inference.prompts import unit
from clip_core.model.contract import Contract, read_contract
from clip_core.serve.index import same_ranking
from clip_core.serve.precision import convert

if TYPE_CHECKING:
    from clip_core.data.store import Store

TOP = 10
AT = (1, 5, TOP)
BATCHES = (1, 2, 3, 8, 32, 64)
QUERIES_AT_ONCE = 256


def shapes(contract: Contract) -> Iterator[tuple[str, np.ndarray]]:
    """Random inputs of many shapes, each with the tower that takes it; the same in every process."""
    draw = np.random.default_rng(0)
    longest = contract.context_length
    for length in sorted({2, 3, longest // 4 + 1, longest // 2 + 1, longest}):
        for batch in BATCHES:
            token_ids = draw.integers(1, contract.architecture.text_tower.vocab_size, (batch, length))
            ends = draw.integers(2, length + 1, (batch, 1))
            ends[0] = length
            yield "text", np.where(np.arange(length) < ends, token_ids, 0)  # padded like a batch of texts
    for batch in BATCHES:
        side = contract.image_size
        yield "image", draw.integers(0, 256, (batch, 3, side, side), dtype=np.uint8)


def measure_parity(expected: Path, onnx: Path, store: Path, limits: Export) -> dict:
    """The export in `onnx` against the features in `expected`, in a process of its own; UserError above the limits.

    Where `limits` ask for another precision than fp32, the export has it afterwards.
    """
    command = [sys.executable, "-m", "clip_core.serve.parity", str(expected), str(onnx), str(store)]
    subprocess.run([*command, str(limits.tie_margin), limits.precision], check=True)
    parity = json.loads((expected / "parity.json").read_text(encoding="utf-8"))
    largest = float(np.max(list(parity["max_feature_difference"].values())))  # not max(), which may pass over NaN
    if not largest <= limits.max_feature_difference:
        raise UserError(
            f"the exported towers differ from torch by {largest:.2e}; export.max_feature_difference allows "
            f"{limits.max_feature_difference:.0e}: {parity['max_feature_difference']}. Nothing is published."
        )
    if parity["top10"]["different"]:
        raise UserError(
            f"{parity['top10']['different']} of {parity['top10']['num_queries']} queries find another top {TOP} than "
            f"with torch, by more than export.tie_margin ({limits.tie_margin:.0e}). Nothing is published."
        )
    check_precision(parity["precisions"][limits.precision], limits)
    return parity


def check_precision(found: dict, limits: Export) -> None:
    """UserError with each figure of what is served that is beyond its limit."""
    cosine, recall = min(found["min_cosine"].values()), found["mean_recall_difference"]
    wrong = []
    if not cosine >= limits.min_cosine:  # a NaN is worse than any
        wrong.append(
            f"their least cosine with torch's features is {cosine:.6f}; export.min_cosine: {limits.min_cosine}"
        )
    if not found["top10_overlap"] >= limits.min_top10_overlap:
        wrong.append(
            f"{found['top10_overlap']:.4f} of torch's top {TOP} are found; "
            f"export.min_top10_overlap: {limits.min_top10_overlap}"
        )
    if not abs(recall) <= limits.max_recall_difference:
        wrong.append(
            f"the mean recall differs by {recall:+.4f}; export.max_recall_difference: {limits.max_recall_difference}"
        )
    if wrong:
        raise UserError(
            f"the towers in {limits.precision} are too far from torch: {'; '.join(wrong)}. Nothing is published."
        )


def compare(expected: Path, onnx: Path, store_folder: Path, tie_margin: float, precision: Precision) -> dict:
    """The differences between the export in `onnx` and the features in `expected`; then it gets the precision."""
    from clip_core.data.store import open_store
    from clip_core.inference.onnx_towers import encode_store, encode_texts, open_session, run

    sessions = {tower: open_session(onnx / f"{tower}.onnx") for tower in ("text", "image")}
    largest = {"text": 0.0, "image": 0.0, "test_texts": 0.0, "test_images": 0.0}
    num_shapes = 0
    for number, (tower, rows) in enumerate(shapes(read_contract(onnx))):
        difference = np.abs(run(sessions[tower], rows) - np.load(expected / f"shape-{number}.npy")).max()
        largest[tower] = float(np.maximum(largest[tower], difference))
        num_shapes += 1
    texts, store = json.loads((expected / "texts.json").read_text(encoding="utf-8")), open_store(store_folder)
    found = {"texts": encode_texts(onnx, texts), "images": encode_store(onnx, store)}
    true = {name: np.load(expected / f"{name}.npy") for name in found}
    for name, features in found.items():
        largest[f"test_{name}"] = float(np.abs(features - true[name]).max())
    right = _right_places(store, texts)
    precisions = {"fp32": _compare_precision(found, true, right, onnx)}
    if precision != "fp32":
        del sessions
        for tower in ("text", "image"):
            convert(onnx / f"{tower}.onnx", precision)
        lower = {"texts": encode_texts(onnx, texts), "images": encode_store(onnx, store)}
        precisions[precision] = _compare_precision(lower, true, right, onnx)
    return {
        "max_feature_difference": largest,
        "num_shapes": num_shapes,
        "num_texts": len(texts),
        "num_images": len(found["images"]),
        "top10": _compare_rankings(found, true, tie_margin),
        "precisions": precisions,
    }


def _right_places(store: "Store", texts: list[str]) -> list[np.ndarray]:
    """The places of each text's pictures in the store."""
    places = {image_id: place for place, image_id in enumerate(store.image_ids)}
    pairs = store.pairs.dropna(subset=["image_id"])
    image_ids = pairs[pairs.caption.isin(texts)].groupby("caption").image_id
    right = {text: np.array([places[image_id] for image_id in ids]) for text, ids in image_ids}
    return [right.get(text, np.array([], dtype=np.int64)) for text in texts]


def _compare_precision(
    found: dict[str, np.ndarray], true: dict[str, np.ndarray], right: list[np.ndarray], onnx: Path
) -> dict:
    """What a precision costs, and what it takes; files are counted with their weights."""
    places, true_places = (top_k(one["images"], one["texts"], TOP)[0] for one in (found, true))
    overlap = [len(set(some) & set(others)) / len(some) for some, others in zip(places, true_places, strict=True)]
    recall, true_recall = (mean_recall(some, right) for some in (places, true_places))
    return {
        "min_cosine": {name: float((unit(rows) * true[name]).sum(axis=1).min()) for name, rows in found.items()},
        "top10_overlap": float(np.mean(overlap)),
        "mean_recall": recall,
        "mean_recall_difference": recall - true_recall,
        "num_bytes": {
            tower: sum(file.stat().st_size for file in onnx.glob(f"{tower}.onnx*")) for tower in ("text", "image")
        },
    }


def mean_recall(places: np.ndarray, right: Sequence[np.ndarray]) -> float:
    """Of texts that search pictures: the mean over k = 1, 5, 10 of those with a right picture among the first k."""
    hits = np.array([np.isin(row, some) for row, some in zip(places, right, strict=True)])
    return float(np.mean([hits[:, :k].any(axis=1).mean() for k in AT]))


def _compare_rankings(found: dict[str, np.ndarray], true: dict[str, np.ndarray], margin: float) -> dict[str, int]:
    num_queries = len(found["texts"])
    reordered = different = 0
    for start in range(0, num_queries, QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        places, _ = top_k(found["images"], found["texts"][rows], TOP)
        true_places, _ = top_k(true["images"], true["texts"][rows], TOP)
        reordered += int((places != true_places).any(axis=1).sum())
        different += int((~same_ranking(true["texts"][rows] @ true["images"].T, places, margin)).sum())
    return {"num_queries": num_queries, "reordered_within_ties": reordered - different, "different": different}


def main() -> None:
    expected, onnx, store, tie_margin, precision = sys.argv[1:]
    parity = compare(Path(expected), Path(onnx), Path(store), float(tie_margin), cast(Precision, precision))
    (Path(expected) / "parity.json").write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
