"""A gallery's index: exact search over the image features of one model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.errors import UserError
from clip_core.files import replacing_folder
from clip_core.inference.nearest import top_k
from clip_core.model.contract import weights_id

if TYPE_CHECKING:
    from clip_core.data.store import Store

QUERIES_AT_ONCE = 256
ROUNDING = 1e-6  # by which float32 scores of unit vectors may differ from the exact ones


class Index(NamedTuple):
    features: np.ndarray  # (images, embed_dim), L2-normalised
    image_ids: list[str]
    weights_id: str  # of the model that made the features


def same_ranking(true_scores: np.ndarray, places: np.ndarray, margin: float) -> np.ndarray:
    """For each query, whether `places` is its true ranking but for scores within `margin`; (queries,) bool."""
    best = -np.sort(-true_scores, axis=1)[:, : places.shape[1]]
    return (np.abs(np.take_along_axis(true_scores, places, axis=1) - best) <= margin).all(axis=1)


def recall_of(features: np.ndarray, queries: np.ndarray, k: int) -> float:
    """The share of the index's top `k` that an exact search in float64 puts there; equal scores are both right."""
    places, _ = top_k(features, queries, k)
    _, best = top_k(features, queries, k, dtype=np.float64)
    num_right = 0
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        found = np.einsum("qd,qkd->qk", queries[rows], features[places[rows]], dtype=np.float64)
        num_right += (found >= best[rows, -1:] - ROUNDING).sum()
    return num_right / places.size


def build_index(onnx: Path, store: "Store", texts: Sequence[str], k: int, min_recall: float, folder: Path) -> float:
    """Writes the index of the store's pictures into `folder` and returns its recall at `k` for `texts`.

    Below `min_recall` it raises UserError and writes nothing.
    """
    from clip_core.inference.onnx_towers import encode_store, encode_texts

    features = encode_store(onnx, store)
    recall = recall_of(features, encode_texts(onnx, texts), k)
    if recall < min_recall:
        raise UserError(f"the index finds {recall:.4f} of the true top {k}; index.min_recall asks for {min_recall}")
    facts = {
        "weights_id": weights_id(onnx),
        "kind": "flat",
        "num_images": len(store),
        "recall": recall,
        "num_queries": len(texts),
    }
    with replacing_folder(folder) as aside:
        np.save(aside / "features.npy", features)
        image_ids = json.dumps(list(store.image_ids), ensure_ascii=False, indent=0)
        (aside / "image_ids.json").write_text(image_ids + "\n", encoding="utf-8")
        (aside / "index.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return recall


def read_index(folder: Path) -> Index:
    """The index in `folder`; ValueError when its parts do not belong together."""
    try:
        facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        # without the encoding, Triton's Python reads ASCII, whatever the locale is
        image_ids = json.loads((folder / "image_ids.json").read_text(encoding="utf-8"))
        features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: not an index: {Path(error.filename).name} is missing") from None
    if len(features) != len(image_ids):
        raise UserError(f"{folder}: {len(features)} rows of features for {len(image_ids)} image ids")
    return Index(features, image_ids, facts["weights_id"])
