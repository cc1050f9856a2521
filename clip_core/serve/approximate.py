"""FAISS for galleries of millions: an index names candidates, whose scores are then computed exactly.

Texts and pictures lie in different parts of the space, so what finds pictures by pictures well may miss those of a
text: how hard an index looks (`effort`) is chosen by the recall of text queries, and a release is refused below it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from clip_core.errors import UserError

if TYPE_CHECKING:
    import faiss

Kind = Literal["hnsw", "ivf_pq"]
FILE = "index.faiss"
EFFORTS = (16, 32, 64, 128, 256, 512, 1024)  # HNSW: candidates kept on the way; IVF: lists that are looked through
CANDIDATES = 10  # times k, of a number that is at hand in one read
TRAINED_ON = 64  # vectors a list: more make no better lists
NEEDED = "faiss is not installed, which an approximate index needs: pip install 'clip-core[faiss]'"


class Approximate(NamedTuple):
    index: "faiss.Index"
    effort: int

    def candidates(self, queries: np.ndarray, num: int) -> np.ndarray:
        """The places of `num` candidates for each query, -1 where it found fewer: (queries, num)."""
        faiss = _faiss()
        if isinstance(self.index, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW(efSearch=max(self.effort, num))
        else:
            parameters = faiss.SearchParametersIVF(nprobe=self.effort)
        return self.index.search(np.ascontiguousarray(queries, dtype=np.float32), num, params=parameters)[1]


def build(features: np.ndarray, kind: Kind) -> "faiss.Index":
    """The index of unit vectors (images, embed_dim); HNSW holds a byte a number, IVF-PQ one for eight."""
    faiss = _faiss()
    num, width = features.shape
    lists = max(1, min(int(4 * math.sqrt(num)), num // 39))  # FAISS warns below 39 vectors a list
    name = "HNSW32,SQ8" if kind == "hnsw" else f"IVF{lists},PQ{math.gcd(width, max(1, width // 8))}"
    index = faiss.index_factory(width, name, faiss.METRIC_INNER_PRODUCT)
    draw = np.random.default_rng(0).permutation(num)[: max(TRAINED_ON * lists, 256 * 64)]
    index.train(np.ascontiguousarray(features[np.sort(draw)], dtype=np.float32))
    for start in range(0, num, 2**16):  # the features may be a file mapped into memory
        index.add(np.ascontiguousarray(features[start : start + 2**16], dtype=np.float32))
    return index


def nearest(
    approximate: Approximate, features: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest.top_k`, among the candidates alone: places and exact scores, best first; equal ones in order."""
    k = min(k, len(features))
    found = approximate.candidates(queries, min(CANDIDATES * k, len(features)))
    places = np.sort(found, axis=1)
    scores = np.einsum("qd,qcd->qc", queries, features[places])
    scores[places < 0] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(places, best, axis=1), np.take_along_axis(scores, best, axis=1)


def with_least_effort(
    index: "faiss.Index", recall_of: Callable[[Approximate], float], min_recall: float
) -> tuple[Approximate, float]:
    """The index with the least effort whose recall is enough, and that recall; UserError when none is."""
    recall = 0.0
    for effort in EFFORTS:
        recall = recall_of(approximate := Approximate(index, effort))
        if recall >= min_recall:
            return approximate, recall
    raise UserError(
        f"the index finds {recall:.4f} of the true top pictures of texts at most; index.min_recall asks for "
        f"{min_recall}. Take index.kind: exact, or hnsw in place of ivf_pq, or lower the limit"
    )


def write(index: "faiss.Index", folder: Path) -> None:
    _faiss().write_index(index, str(folder / FILE))


def read(folder: Path, effort: int) -> Approximate:
    """The index in the folder, mapped into memory: processes that read it share it."""
    faiss = _faiss()
    return Approximate(faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC), effort)


def _faiss():
    try:
        import faiss
    except ModuleNotFoundError:
        raise UserError(NEEDED) from None
    return faiss
