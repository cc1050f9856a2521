"""Approximate search by FAISS (`index.kind`): less time for millions of pictures, what it finds is scored exactly.

Texts lie apart from the pictures' features, so an index that finds a picture's neighbours may miss a text's: the stage
`index` gates the recall of texts.
"""

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
        index = cast("Any", faiss.index_factory(width, f"IVF{lists},PQ{width // 8}", faiss.METRIC_INNER_PRODUCT))
        index.pq.cp.niter, index.pq.cp.max_points_per_centroid = ROUNDS, TRAINING_ROWS  # most of the time goes here
    rows = np.ascontiguousarray(features, dtype=np.float32)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(file))


class Approximate:
    """An index that was built of these features, mapped into memory."""

    def __init__(self, file: Path, features: np.ndarray) -> None:
        try:
            import faiss
        except ModuleNotFoundError:
            raise UserError(f"{file}: an approximate index needs faiss; pip install faiss-cpu") from None
        faiss.omp_set_num_threads(1)  # questions come side by side
        self.features = features
        self.index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        if hasattr(self.index, "nlist"):
            self.index.nprobe = max(32, self.index.nlist // 16)
        if self.index.ntotal != len(features):
            raise UserError(f"{file}: of {self.index.ntotal} pictures, but there are {len(features)} features")

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Places and exact scores of the `k` pictures found for each query, both (queries, k), best first."""
        k = min(k, len(self.features))
        wanted = min(max(AGAIN * k, BREADTH), len(self.features))
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = max(BREADTH, wanted)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        _, found = self.index.search(queries, wanted)
        rows = np.sort(found, axis=1)  # equal scores: the first picture comes first
        scores = np.einsum("qd,qkd->qk", queries, self.features[rows])
        scores[rows < 0] = -np.inf  # FAISS's word for "no more"
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        if (np.take_along_axis(rows, best, axis=1) < 0).any():
            return top_k(self.features, queries, k)
        return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
