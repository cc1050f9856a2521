"""Approximate search by FAISS (`index.kind`): less time for millions of pictures, what it finds is scored exactly.

Texts lie apart from the pictures' features, so an index that finds a picture's neighbours may miss a text's: the stage
`index` gates the recall of texts.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from clip_core.errors import UserError
from clip_core.inference.nearest import top_k

Kind = Literal["hnsw", "ivf_pq"]
FILE = "approximate.faiss"  # beside the features
AGAIN = 2  # times as many as are wanted are scored exactly, BREADTH at least
LINKS, BREADTH = 32, 200  # HNSW's M, efConstruction and least efSearch
TRAINING_ROWS, ROUNDS = 40, 10  # of k-means: for each centre, as FAISS advises
CODES = 256  # of a part of a feature, which as many pictures must teach


def build(kind: Kind, features: np.ndarray, file: Path) -> None:
    """Writes the index of the features, (pictures, embed_dim) and L2-normalised, the same bytes each time."""
    import faiss

    count, width = features.shape
    faiss.omp_set_num_threads(1)  # the order in which sums are made and pictures linked decides the bytes
    if kind == "hnsw":
        index = cast("Any", faiss.index_factory(width, f"HNSW{LINKS}_SQ8", faiss.METRIC_INNER_PRODUCT))
        index.hnsw.efConstruction = BREADTH
    else:
        if width % 8 or count < CODES:
            raise UserError(
                f"index.kind: ivf_pq is for {CODES} pictures or more and features of 8, 16, 24 ... numbers, not "
                f"{count} and {width}; write exact or hnsw"
            )
        lists = max(1, min(int(4 * count**0.5), count // TRAINING_ROWS))
        codes = f"PQ{width // 8}np"  # np: codes are not put in order for Hamming distances, which takes minutes
        index = cast("Any", faiss.index_factory(width, f"IVF{lists},{codes}", faiss.METRIC_INNER_PRODUCT))
        index.pq.cp.niter, index.pq.cp.max_points_per_centroid = ROUNDS, TRAINING_ROWS  # most of the time goes here
    rows = np.ascontiguousarray(features, dtype=np.float32)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(file))


def best_of(features: np.ndarray, rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of each query's `rows`, (queries, found), and their exact scores; of equals the first.

    A row is -1 where there is none; its score is -inf.
    """
    rows = np.sort(rows, axis=1)
    scores = np.einsum("qd,qkd->qk", queries, features[rows])
    scores[rows < 0] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)


class Approximate:
    """An index that was built of these features, mapped into memory.

    Where pictures came and went since it was built, `kept` says which of those that it holds are still there, (built,)
    bool: their features come first and in the same order. The others came later: all of them are compared.
    """

    def __init__(self, file: Path, features: np.ndarray, kept: np.ndarray | None = None) -> None:
        try:
            import faiss
        except ModuleNotFoundError:
            raise UserError(f"{file}: an approximate index needs faiss; pip install faiss-cpu") from None
        faiss.omp_set_num_threads(1)  # questions come side by side
        self.features = features
        self.index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        kept = np.ones(len(features), dtype=bool) if kept is None else kept
        if self.index.ntotal != len(kept) or kept.sum() > len(features):
            raise UserError(f"{file}: of {self.index.ntotal} pictures, but there are {len(features)} features")
        self.num_kept = int(kept.sum())
        self.places = np.where(kept, np.cumsum(kept) - 1, -1)  # of what FAISS finds
        untyped: Any = faiss
        self.allowed = None if kept.all() else untyped.IDSelectorBitmap(np.packbits(kept, bitorder="little"))

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Places and exact scores of the `k` pictures found for each query, both (queries, k), best first."""
        k = min(k, len(self.features))
        wanted = min(max(AGAIN * k, BREADTH), self.num_kept)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        _, found = self.index.search(queries, wanted, params=self._parameters(wanted))
        if ((found >= 0).sum(axis=1) < min(k, self.num_kept)).any():  # -1 is FAISS's word for "no more"
            return top_k(self.features, queries, k)
        found = np.where(found < 0, -1, self.places[found])
        later, _ = top_k(self.features[self.num_kept :], queries, k)
        return best_of(self.features, np.concatenate([found, later + self.num_kept], axis=1), queries, k)

    def _parameters(self, wanted: int) -> object:
        faiss: Any = import_module("faiss")  # its types do not know what its constructors take
        if hasattr(self.index, "hnsw"):
            return faiss.SearchParametersHNSW(efSearch=max(BREADTH, wanted), sel=self.allowed)
        return faiss.SearchParametersIVF(nprobe=max(32, self.index.nlist // 16), sel=self.allowed)
