"""Recall at k, ranks and mAP@R of exact search, for queries with any number of right answers."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import comb, exp, lgamma
from typing import NamedTuple

import numpy as np

from clip_core.data.store import Store
from clip_core.errors import UserError
from clip_core.evaluate.benchmark import questions, read_benchmark
from clip_core.inference.nearest import Scores, count_above, top_k

AT = (1, 5, 10)
TIE = np.float32(1e-6)  # float32 scores of equal features differ by rounding, by less than this
PAIRS_AT_ONCE = 2**14

Relevant = Sequence[Sequence[int] | np.ndarray] | np.ndarray  # for each query, the places of its right answers
Encode = Callable[[list[str]], np.ndarray]  # texts -> (n, embed_dim), L2-normalised
EncodeStored = Callable[[np.ndarray], np.ndarray]  # places of pictures in a store -> (n, embed_dim), L2-normalised


class Retrieved(NamedTuple):
    """What each query finds. A wrong candidate whose score equals that of a right one stands before it."""

    ranks: np.ndarray  # (queries,) from 1, of the best right answer
    is_tied: np.ndarray  # (queries,) whether a wrong candidate has that answer's score
    places: np.ndarray  # (queries, k) the best candidates, best first
    scores: np.ndarray  # (queries, k)
    is_right: np.ndarray  # (queries, k)


def retrieve(
    query_features: np.ndarray, candidate_features: np.ndarray, relevant: Relevant, k: int, device: str | None = None
) -> Retrieved:
    """Searches the candidates for each query, exactly and in bounded memory, where `top_k` does; `k` may be 0."""
    pairs = _Pairs(relevant, query_features, candidate_features)
    limits, above = pairs.best - TIE, np.nextafter(pairs.best + TIE, np.float32(np.inf))
    ahead, clearly_ahead = np.zeros((2, len(query_features)), dtype=np.int64)

    def judge(rows: slice, columns: slice, scores: Scores) -> None:
        queries, right = pairs.within(rows, columns)
        is_numpy = isinstance(scores, np.ndarray)
        values = scores[queries, right] if is_numpy else scores[queries, right].cpu().numpy()
        for counted, least in ((ahead, limits[rows]), (clearly_ahead, above[rows])):
            counted[rows] += count_above(scores, least)
            counted[rows] -= np.bincount(queries[values >= least[queries]], minlength=rows.stop - rows.start)
        lowered = np.nextafter(values - TIE, np.float32(-np.inf))
        scores[queries, right] = lowered if is_numpy else scores.new_tensor(lowered)

    places, scores = top_k(candidate_features, query_features, k, judge, device=device)
    is_right = pairs.holds(places)
    return Retrieved(1 + ahead, ahead > clearly_ahead, places, scores + TIE * is_right, is_right)


class _Pairs:
    """Queries and their right answers, as two long lists in the order of the candidates."""

    def __init__(self, relevant: Relevant, query_features: np.ndarray, candidate_features: np.ndarray) -> None:
        if not (np.isfinite(query_features).all() and _is_finite(candidate_features)):
            raise UserError("the features hold NaN or infinity: these weights are broken, train them again")
        counts = np.array([len(places) for places in relevant], dtype=np.int64)
        if not counts.all():
            raise UserError(f"query {counts.argmin()} has no right answer: leave it out of the queries")
        self.num_candidates = len(candidate_features)
        right = np.concatenate([np.asarray(places, dtype=np.int64) for places in relevant])
        order = np.argsort(right, kind="stable")
        self.queries, self.right = np.repeat(np.arange(len(counts)), counts)[order], right[order]
        self.best = np.full(len(counts), -np.inf, dtype=np.float32)  # of each query's right answers
        for start in range(0, len(right), PAIRS_AT_ONCE):
            some = slice(start, start + PAIRS_AT_ONCE)
            asked, found = query_features[self.queries[some]], candidate_features[self.right[some]]
            np.maximum.at(self.best, self.queries[some], np.einsum("nd,nd->n", asked, found))

    def within(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Those of a block of queries and candidates, as places in it."""
        some = slice(*np.searchsorted(self.right, [columns.start, columns.stop]))
        queries, right = self.queries[some], self.right[some]
        is_in = (queries >= rows.start) & (queries < rows.stop)
        return queries[is_in] - rows.start, right[is_in] - columns.start

    def holds(self, places: np.ndarray) -> np.ndarray:
        """Which of the `places` (queries, k) are right answers of their query."""
        asked = np.arange(len(places))[:, None] * self.num_candidates + places
        return np.isin(asked, self.queries * self.num_candidates + self.right)


def _is_finite(features: np.ndarray) -> bool:
    return all(np.isfinite(features[start : start + 2**16]).all() for start in range(0, len(features), 2**16))


def ranks(query_features: np.ndarray, candidate_features: np.ndarray, relevant: Relevant) -> np.ndarray:
    """The rank, from 1, of each query's best right answer; a wrong candidate with an equal score stands before it."""
    return retrieve(query_features, candidate_features, relevant, 0).ranks


def map_at_r(is_right: np.ndarray, num_right: Sequence[int] | np.ndarray) -> np.ndarray:
    """Each query's mAP@R: of a query with R right answers, the mean over its first R places of the precision there.

    A wrong place counts 0 (Musgrave et al., A Metric Learning Reality Check, ECCV 2020). `is_right` (queries, k) says
    it of each query's best, with k no less than the largest R or the number of candidates.
    """
    place, counts = np.arange(1, is_right.shape[1] + 1), np.asarray(num_right)[:, None]
    precision = is_right.cumsum(axis=1) / place * is_right
    return (precision * (place <= counts)).sum(axis=1) / counts[:, 0]


def recall_at(ranks: np.ndarray, k: int) -> float:
    """The share of queries with a right answer among the first k."""
    return float(np.mean(ranks <= k))


def chance_at(num_right: Sequence[int] | np.ndarray, num_candidates: int, k: int) -> float:
    """The recall at k of a random order: one minus the (hypergeometric) chance of k wrong candidates."""
    counts, times = np.unique(np.asarray(num_right), return_counts=True)
    drawn = min(k, num_candidates)
    misses = [comb(num_candidates - int(count), drawn) / comb(num_candidates, drawn) for count in counts]
    return float(1 - np.average(misses, weights=times))


def map_chance(num_right: Sequence[int] | np.ndarray, num_candidates: int) -> float:
    """The mAP@R of a random order: at place i the precision of a right one is (1 + (i-1) (R-1) / (N-1)) / i."""

    def of_one(count: int) -> float:
        place = np.arange(1, count + 1)
        others = (count - 1) / max(1, num_candidates - 1)
        return float(((1 + (place - 1) * others) / place).sum() / num_candidates)

    counts, times = np.unique(np.asarray(num_right), return_counts=True)
    return float(np.average([of_one(int(count)) for count in counts], weights=times))


def median_rank_by_chance(num_right: Sequence[int] | np.ndarray, num_candidates: int) -> int:
    """The rank within which, in a random order, half of the queries have a right answer; `chance_at` in logarithms."""
    counts, times = np.unique(np.asarray(num_right), return_counts=True)

    def hit(rank: int) -> float:
        return 1 - float(np.average([missed(int(count), rank) for count in counts], weights=times)) + 1e-9

    def missed(count: int, rank: int) -> float:
        if rank > num_candidates - count:
            return 0.0
        ways, all_ways = num_candidates - count + 1, num_candidates + 1
        return exp(lgamma(ways) - lgamma(ways - rank) - lgamma(all_ways) + lgamma(all_ways - rank))

    return 1 + bisect_left(range(1, num_candidates), 0.5, key=hit)


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
