"""Whether the exported towers compute what torch computes.

The two runtimes meet in files: the exporting process (torch, no onnxruntime) writes what it expects, and
`python -m clip_core.serve.parity` (onnxruntime, no torch) compares. Both make the same inputs.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clip_core.config.export import Export
from clip_core.errors import UserError
from clip_core.inference.nearest import top_k
from clip_core.model.contract import Contract, read_contract
from clip_core.serve.index import same_ranking

TOP = 10
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
    """The export in `onnx` against the features in `expected`, in a process of its own; ValueError above the limits."""
    command = [sys.executable, "-m", "clip_core.serve.parity", str(expected), str(onnx), str(store)]
    subprocess.run([*command, str(limits.tie_margin)], check=True)
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
    return parity


def compare(expected: Path, onnx: Path, store_folder: Path, tie_margin: float) -> dict:
    """The differences between the export in `onnx` and the features in `expected`."""
    from clip_core.data.store import open_store
    from clip_core.inference.onnx_towers import encode_store, encode_texts, open_session, run

    sessions = {tower: open_session(onnx / f"{tower}.onnx") for tower in ("text", "image")}
    largest = {"text": 0.0, "image": 0.0, "test_texts": 0.0, "test_images": 0.0}
    num_shapes = 0
    for number, (tower, rows) in enumerate(shapes(read_contract(onnx))):
        difference = np.abs(run(sessions[tower], rows) - np.load(expected / f"shape-{number}.npy")).max()
        largest[tower] = float(np.maximum(largest[tower], difference))
        num_shapes += 1
    texts = json.loads((expected / "texts.json").read_text(encoding="utf-8"))
    found = {"texts": encode_texts(onnx, texts), "images": encode_store(onnx, open_store(store_folder))}
    true = {name: np.load(expected / f"{name}.npy") for name in found}
    for name, features in found.items():
        largest[f"test_{name}"] = float(np.abs(features - true[name]).max())
    return {
        "max_feature_difference": largest,
        "num_shapes": num_shapes,
        "num_texts": len(texts),
        "num_images": len(found["images"]),
        "top10": _compare_rankings(found, true, tie_margin),
    }


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
    expected, onnx, store, tie_margin = sys.argv[1:]
    parity = compare(Path(expected), Path(onnx), Path(store), float(tie_margin))
    (Path(expected) / "parity.json").write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
