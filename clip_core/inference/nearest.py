"""Exact search: of all candidates those with the highest scores, in blocks, so that memory stays what it is.

A score is the product of two features, for unit vectors their cosine. Neither all scores nor a copy of all candidates
are ever held: candidates may be a file mapped into memory, which is read once.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

QUERIES_AT_ONCE, CANDIDATES_AT_ONCE = 1024, 4096  # 16 MiB of float32 scores
GROUPS = 128  # of a block's candidates: the best of each are known after one pass over the scores
MAX_FOUND = 2**22  # of what may be among the best, before it is looked through

Scores = Any  # (queries, candidates) of a block: numpy's, or torch's where the device is its own
Adjust = Callable[[slice, slice, Scores], None]  # sees which queries and candidates, may change their scores in place
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # queries, candidates, scores


def top_k(
    candidates: np.ndarray,
    queries: np.ndarray,
    k: int,
    adjust: Adjust | None = None,
    dtype: type = np.float32,
    device: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The places and scores, best first, of the `k` candidates nearest to each query; equal ones in order.

    Both are (queries, k), or as many as there are candidates. `adjust` sees every block of scores once, before it
    counts. `device` is where the scores are computed: "cpu" (numpy), or one of torch's; None: a GPU, if this process
    has loaded torch and torch finds one.
    """
    k, device = min(k, len(candidates)), device or _fastest()
    least = np.full((len(queries), k), -np.inf, dtype=dtype)  # k scores of each query, of which none is above its best
    found: list[Found] = []
    for rows, columns, scores in _blocks(queries, candidates, dtype, device):
        if adjust:
            adjust(rows, columns, scores)
        if k:
            before = np.nextafter(least[rows].min(axis=1), np.inf, dtype=dtype)  # an equal one that comes later loses
            grouped = _best_of_groups(scores, k)
            least[rows] = np.partition(np.concatenate([least[rows], grouped], axis=1), -k, axis=1)[:, -k:]
            some, places, values = _at_least(scores, np.maximum(before, least[rows].min(axis=1)), grouped)
            found.append((rows.start + some, columns.start + places, values))
            if sum(len(some) for some, *_ in found) > MAX_FOUND:
                found = [_best(found, len(queries), k)]
    if not found:
        return np.empty((len(queries), k), dtype=np.int64), least
    _, places, values = _best(found, len(queries), k)
    return places.reshape(-1, k), values.reshape(-1, k)


def _fastest() -> str:
    torch = sys.modules.get("torch")  # serving does without it
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def count_above(scores: Scores, limits: np.ndarray) -> np.ndarray:
    """How many scores of each row are at least its limit."""
    if not isinstance(scores, np.ndarray):
        import torch

        return (scores >= torch.from_numpy(limits).to(scores)[:, None]).sum(dim=1).cpu().numpy()
    is_above, whole = (scores >= limits[:, None]).view(np.uint8), scores.shape[1] // GROUPS * GROUPS
    # numpy is quick at bytes that lie side by side; a byte holds the sum of CANDIDATES_AT_ONCE / GROUPS
    grouped = is_above[:, :whole].reshape(len(scores), -1, GROUPS).sum(axis=1, dtype=np.uint8)
    return grouped.sum(axis=1, dtype=np.int64) + is_above[:, whole:].sum(axis=1, dtype=np.int64)


def _blocks(
    queries: np.ndarray, candidates: np.ndarray, dtype: type, device: str
) -> Iterator[tuple[slice, slice, Scores]]:
    matmul: Any = np.matmul
    asked: Any = np.asarray(queries, dtype=dtype)
    space: Any = np.empty(min(len(queries), QUERIES_AT_ONCE) * min(len(candidates), CANDIDATES_AT_ONCE), dtype=dtype)
    if device != "cpu":
        import torch

        matmul, asked = torch.matmul, torch.from_numpy(np.array(asked)).to(device)
        space = torch.from_numpy(space).to(device)
    for start in range(0, len(candidates), CANDIDATES_AT_ONCE):
        columns = slice(start, min(start + CANDIDATES_AT_ONCE, len(candidates)))
        some: Any = np.asarray(candidates[columns], dtype=dtype)
        if device != "cpu":
            some = torch.from_numpy(np.array(some)).to(device)  # a file's rows can not be written to, which torch wants
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(first, min(first + QUERIES_AT_ONCE, len(queries)))
            shape = rows.stop - first, columns.stop - start
            yield rows, columns, matmul(asked[rows], some.T, out=space[: shape[0] * shape[1]].reshape(shape))


def _best_of_groups(scores: Scores, k: int) -> np.ndarray:
    """At least as many of each row's scores as `k` (if there are so many), with its `k` best or others near them."""
    if not isinstance(scores, np.ndarray):
        return scores.topk(min(k, scores.shape[1]), dim=1).values.cpu().numpy()
    if 2 * k > GROUPS or scores.shape[1] < 2 * GROUPS:
        return scores
    whole = scores.shape[1] // GROUPS * GROUPS  # a group's candidates lie GROUPS apart: numpy compares whole rows
    return scores[:, :whole].reshape(len(scores), -1, GROUPS).max(axis=1)


def _at_least(scores: Scores, limits: np.ndarray, grouped: np.ndarray) -> Found:
    """All scores of a block from each row's limit on, with their places in the block."""
    if not isinstance(scores, np.ndarray):
        import torch

        rows, columns = torch.nonzero(scores >= torch.from_numpy(limits).to(scores)[:, None], as_tuple=True)
        return rows.cpu().numpy(), columns.cpu().numpy(), scores[rows, columns].cpu().numpy()
    if grouped is scores:
        rows, columns = np.nonzero(scores >= limits[:, None])
        return rows, columns, scores[rows, columns]
    whole = scores.shape[1] // GROUPS * GROUPS
    rows, groups = np.nonzero(grouped >= limits[:, None])  # all others lie in groups whose best is below the limit
    rest_rows, rest = np.nonzero(scores[:, whole:] >= limits[:, None])
    members = np.arange(0, whole, GROUPS)
    columns = np.concatenate([(groups[:, None] + members).ravel(), rest + whole])
    rows = np.concatenate([np.repeat(rows, len(members)), rest_rows])
    values = scores[rows, columns]
    is_kept = values >= limits[rows]
    return rows[is_kept], columns[is_kept], values[is_kept]


def _best(found: list[Found], num_queries: int, k: int) -> Found:
    """The `k` best of each query, best first; of equal scores the first candidate."""
    queries, places, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((places, -values, queries))
    counts = np.bincount(queries, minlength=num_queries)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[rank < k]
    return queries[kept], places[kept], values[kept]
