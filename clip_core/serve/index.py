"""A gallery's index: search over the image features of one model, exact or approximate (`index.kind`)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from clip_core.errors import UserError
from clip_core.files import replacing_folder
from clip_core.inference.nearest import Scores, top_k
from clip_core.model.contract import weights_id
from clip_core.serve import approximate, milvus
from clip_core.serve.approximate import Approximate
from clip_core.serve.milvus import Milvus

if TYPE_CHECKING:
    from clip_core.config.index import Index as Params
    from clip_core.data.store import Store

FEATURES = "features.npy"
KEPT = "kept.npy"  # where pictures came and went: which of those that the base had are still there, and come first
QUERIES_AT_ONCE = 256
ROUNDING = 1e-6  # by which float32 scores of unit vectors may differ from the exact ones


class Index(NamedTuple):
    features: np.ndarray  # (images, embed_dim), L2-normalised
    image_ids: list[str]
    weights_id: str  # of the model that made the features
    recall: float  # of texts, against the exact search, when it was built
    approximate: Approximate | Milvus | None

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The places and scores of the `k` pictures found for each query, both (queries, k), best first."""
        if not self.approximate:
            return top_k(self.features, queries, k)
        places, scores = self.approximate.top_k(queries, k)
        return (places, scores) if (places >= 0).all() else top_k(self.features, queries, k)

    def top_k_with(
        self, wanted: Mapping[str, object], have_it: np.ndarray, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `top_k`, of the pictures whose metadata are as wanted: they `have_it`, (images,) bool."""
        if isinstance(self.approximate, Milvus):
            places, scores = self.approximate.top_k(queries, k, wanted)
            if (places[:, : have_it.sum()] >= 0).all():
                return places, scores

        def drop(_queries: slice, candidates: slice, scores: Scores) -> None:
            scores[:, ~have_it[candidates]] = -np.inf

        return top_k(self.features, queries, k, drop)


class Content(NamedTuple):
    """What an index says of its pictures, beside the features."""

    image_ids: list[str]
    metadata: dict[str, list]  # by column, of each picture
    weights_id: str
    kind: Literal["exact", "milvus"] | approximate.Kind
    min_recall: float


def same_ranking(true_scores: np.ndarray, places: np.ndarray, margin: float) -> np.ndarray:
    """For each query, whether `places` is its true ranking but for scores within `margin`; (queries,) bool."""
    best = -np.sort(-true_scores, axis=1)[:, : places.shape[1]]
    return (np.abs(np.take_along_axis(true_scores, places, axis=1) - best) <= margin).all(axis=1)


def recall_of(features: np.ndarray, queries: np.ndarray, places: np.ndarray) -> float:
    """The share of `places`, (queries, k), that an exact search in float64 finds too; equal scores are both right."""
    _, best = top_k(features, queries, places.shape[1], dtype=np.float64)
    num_right = 0
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        found = np.einsum("qd,qkd->qk", queries[rows], features[places[rows]], dtype=np.float64)
        num_right += ((found >= best[rows, -1:] - ROUNDING) & (places[rows] >= 0)).sum()
    return num_right / places.size


def build_index(onnx: Path, store: "Store", texts: Sequence[str], params: "Params", folder: Path) -> float:
    """Writes the index of the store's pictures into `folder` and returns its recall at `params.top_k` for `texts`.

    Below `params.min_recall`, or without the metadata that they name, it raises UserError and writes nothing.
    """
    from clip_core.inference.onnx_towers import encode_store, encode_texts

    metadata = {column: of_pictures(store, column) for column in params.metadata}
    features, queries = encode_store(onnx, store), encode_texts(onnx, texts)
    content = Content(store.image_ids, metadata, weights_id(onnx), params.kind, params.min_recall)
    with replacing_folder(folder) as aside:
        np.save(aside / FEATURES, features)
        build_search(content, features, aside)
        return describe_index(aside, content, queries, params.top_k)


def build_search(content: Content, features: np.ndarray, folder: Path) -> None:
    """Writes what finds pictures into `folder`, which holds the features, unless all of them are to be compared."""
    if content.kind == "milvus":
        milvus.build(folder / FEATURES, content.metadata, folder / milvus.FILE)
    elif content.kind != "exact":
        approximate.build(content.kind, features, folder / approximate.FILE)


def describe_index(folder: Path, content: Content, queries: np.ndarray, k: int) -> float:
    """Completes the index in `folder`, where what is searched lies already; returns its recall of the `queries`.

    UserError when that is below what is asked.
    """
    for name, tree in (("image_ids", content.image_ids), ("metadata", content.metadata)):
        _write(folder / f"{name}.json", tree, 0 if name == "image_ids" else 2)
    features, found = _open(folder)
    places, _ = found.top_k(queries, k) if found else top_k(features, queries, k)
    recall = recall_of(features, queries, places)
    if recall < content.min_recall:
        raise UserError(f"the index finds {recall:.4f} of the true top {k}; index.min_recall: {content.min_recall}")
    facts = {
        "weights_id": content.weights_id,
        "kind": content.kind,
        "num_images": len(content.image_ids),
        "recall": recall,
        "num_queries": len(queries),
        "min_recall": content.min_recall,
    }
    _write(folder / "index.json", facts, 2)
    return recall


def _write(file: Path, tree: object, indent: int) -> None:
    file.write_text(json.dumps(tree, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def of_pictures(store: "Store", column: str) -> list:
    """What the pair table's column says of each picture, as JSON has it."""
    pairs = store.pairs
    if column not in pairs.columns:
        raise UserError(f"index.metadata: {column}: the pair table has {', '.join(pairs.columns)}")
    values = pairs[["image_id", column]].dropna(subset="image_id").drop_duplicates()
    if len(several := values.image_id[values.image_id.duplicated()]):
        raise UserError(f"index.metadata: {column}: several values for the picture {several.iloc[0]!r}; leave it out")
    return json.loads(values.set_index("image_id")[column].reindex(store.image_ids).to_json(orient="values"))


def read_metadata(folder: Path) -> dict[str, list]:
    """Of the index in `folder`, by column: the value of each picture, in the order of its ids."""
    file = folder / "metadata.json"
    # An index of an earlier version has none.
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def read_content(folder: Path) -> Content:
    """What the index in `folder` says of its pictures."""
    facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    image_ids = json.loads((folder / "image_ids.json").read_text(encoding="utf-8"))
    least = facts.get("min_recall", facts["recall"])  # an index of an earlier version does not say what was asked
    return Content(image_ids, read_metadata(folder), facts["weights_id"], facts["kind"], least)


def read_kept(folder: Path) -> np.ndarray | None:
    """Which of the base's pictures the index in `folder` still has, (base,) bool; None: it has no base."""
    return np.load(folder / KEPT, allow_pickle=False) if (folder / KEPT).exists() else None


def read_index(folder: Path, asks_server: bool = True) -> Index:
    """The index in `folder`; ValueError when its parts do not belong together.

    One of the kind milvus compares with all pictures where it `asks_server` is False.
    """
    try:
        facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        # without the encoding, Triton's Python reads ASCII, whatever the locale is
        image_ids = json.loads((folder / "image_ids.json").read_text(encoding="utf-8"))
        features, found = _open(folder, asks_server)
        weights_id, recall = facts["weights_id"], facts["recall"]
    except FileNotFoundError as error:
        raise UserError(f"{folder}: not an index: {Path(error.filename).name} is missing") from None
    except KeyError as error:
        raise UserError(f"{folder / 'index.json'} has no {error}: make the index again") from None
    if len(features) != len(image_ids):
        raise UserError(f"{folder}: {len(features)} rows of features for {len(image_ids)} image ids")
    return Index(features, image_ids, weights_id, recall, found)


def _open(folder: Path, asks_server: bool = True) -> tuple[np.ndarray, Approximate | Milvus | None]:
    features = np.load(folder / FEATURES, mmap_mode="r", allow_pickle=False)
    if asks_server and (folder / milvus.FILE).exists():
        return features, Milvus(folder / milvus.FILE, features, read_metadata(folder))
    file = folder / approximate.FILE
    return features, Approximate(file, features, read_kept(folder)) if file.exists() else None
