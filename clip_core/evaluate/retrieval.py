"""Recall at k of exact search, for queries with any number of right answers."""

from collections.abc import Callable, Iterator, Sequence
from math import comb

import numpy as np

from clip_core.data.store import Store
from clip_core.errors import UserError
from clip_core.evaluate.benchmark import questions, read_benchmark

AT = (1, 5, 10)
TIE = 1e-6  # float32 scores of equal features differ by rounding, by less than this
MAX_SCORES = 2**24  # in memory at a time: 64 MiB

Relevant = Sequence[Sequence[int] | np.ndarray] | np.ndarray  # for each query, the places of its right answers
Encode = Callable[[list[str]], np.ndarray]  # texts -> (n, embed_dim), L2-normalised
EncodeStored = Callable[[np.ndarray], np.ndarray]  # places of pictures in a store -> (n, embed_dim), L2-normalised


def ranks(query_features: np.ndarray, candidate_features: np.ndarray, relevant: Relevant) -> np.ndarray:
    """The rank, from 1, of each query's best right answer; a wrong candidate with an equal score stands before it."""
    found = np.empty(len(query_features), dtype=np.int64)
    for rows, scores, right in _scored(query_features, candidate_features, relevant):
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        found[rows] = 1 + ((scores >= best - TIE) & ~right).sum(axis=1)
    return found


def top(
    query_features: np.ndarray, candidate_features: np.ndarray, relevant: Relevant, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The places and scores of each query's k best candidates, best first; of equal ones, the wrong stand first."""
    shape = len(query_features), min(k, len(candidate_features))
    places, best = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32)
    for rows, scores, right in _scored(query_features, candidate_features, relevant):
        for i, row_scores, row_right in zip(range(rows.start, rows.stop), scores, right, strict=True):
            order = np.where(row_right, row_scores - TIE, row_scores)
            near = np.flatnonzero(order >= np.partition(order, -shape[1])[-shape[1]])  # k of them, or more when tied
            places[i] = near[np.lexsort((row_right[near], -order[near]))][: shape[1]]
            best[i] = row_scores[places[i]]
    return places, best


def recall_at(ranks: np.ndarray, k: int) -> float:
    """The share of queries with a right answer among the first k."""
    return float(np.mean(ranks <= k))


def chance_at(num_right: Sequence[int] | np.ndarray, num_candidates: int, k: int) -> float:
    """The recall at k of a random order: one minus the (hypergeometric) chance of k wrong candidates."""
    counts, times = np.unique(np.asarray(num_right), return_counts=True)
    drawn = min(k, num_candidates)
    misses = [comb(num_candidates - int(count), drawn) / comb(num_candidates, drawn) for count in counts]
    return float(1 - np.average(misses, weights=times))


def quick_recall(
    encode_texts: Encode, encode_images: EncodeStored, store: Store, widths: Sequence[int] = ()
) -> dict[str, float]:
    """The text-to-image mean recall on the seen concepts of a packed split, which training shows on its way.

    Of the features, and of their first `widths` numbers.
    """
    benchmark = read_benchmark(store)
    asked = questions(benchmark, "seen")
    text_features = encode_texts([benchmark.texts[i] for i in asked.asking_texts])
    image_features = encode_images(asked.images)
    recall = {}
    for suffix, width in [("", text_features.shape[1]), *((f"_width_{width}", width) for width in widths)]:
        narrow = (_narrowed(features, width) for features in (text_features, image_features))
        found = ranks(*narrow, asked.right_images)
        recall[f"text_to_image_mean_recall{suffix}"] = float(np.mean([recall_at(found, k) for k in AT]))
    return recall


def _narrowed(features: np.ndarray, width: int) -> np.ndarray:
    first = features[:, :width]
    return features if width == features.shape[1] else first / np.linalg.norm(first, axis=1, keepdims=True)


def _scored(
    query_features: np.ndarray, candidate_features: np.ndarray, relevant: Relevant
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Some queries at a time: which, their scores of all candidates, and which candidates are right."""
    size = max(1, MAX_SCORES // len(candidate_features))
    for start in range(0, len(query_features), size):
        rows = slice(start, min(start + size, len(query_features)))
        scores = query_features[rows] @ candidate_features.T  # (rows, candidates)
        if not np.isfinite(scores).all():  # comparisons with NaN are false, which would rank the truth first
            raise UserError("the features hold NaN or infinity: these weights are broken, train them again")
        right = np.zeros(scores.shape, dtype=bool)
        for row, places in enumerate(relevant[rows]):
            if len(places) == 0:
                raise UserError(f"query {start + row} has no right answer: leave it out of the queries")
            right[row, places] = True
        yield rows, scores, right
