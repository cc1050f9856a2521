"""Near-duplicate pictures: which resemble which, exactly, without comparing all with all.

Two pictures resemble each other when their perceptual hashes differ in at most `distance` bits and their thumbnails
agree: hashes see only light and dark, and a red circle does not look like a blue one. Rows are numbers of pictures.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np

MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 3, 32  # of two thumbnails that show the same picture, in colour levels (0-255)
SIDE = 16  # of a thumbnail, which is RGB
MOST = MEAN_DIFFERENCE * SIDE * SIDE * 3  # that two thumbnails may differ in all: so no sums over parts differ by more
BRIGHTNESSES = 2**18  # more than there are sums over a thumbnail
AT_ONCE = 4096  # thumbnails in memory


def quarters_of(thumbnails: np.ndarray) -> np.ndarray:
    """For each of the thumbnails (n, 768), the sums over its quarters' pixels in each colour: int16 (n, 12)."""
    half = SIDE // 2
    return thumbnails.reshape(-1, 2, half, 2, half, 3).sum((2, 4), dtype=np.int16).reshape(-1, 12)


class Looks:
    """What every picture looks like, with those of one hash together, from dark to bright.

    So also the very many flat pictures, which share one hash and differ in colour, are compared with few others.
    """

    def __init__(self, hashes: np.ndarray, quarters: np.ndarray, thumbnails: np.ndarray, distance: int) -> None:
        brightness = quarters.sum(1, dtype=np.int32)
        self._rows = np.lexsort((brightness, hashes))  # place -> row
        self._place_of = np.argsort(self._rows)
        self._quarters = quarters[self._rows]
        self._thumbnails = thumbnails
        values, starts, self._value_of = np.unique(hashes[self._rows], return_index=True, return_inverse=True)
        self._keys = self._value_of * BRIGHTNESSES + brightness[self._rows]  # ascending
        self._nearby, self._firsts = self._values_nearby(values, starts, distance)
        sizes = np.diff(starts, append=len(hashes))
        self._is_alone = ((sizes == 1) & (np.diff(self._firsts) == 1))[self._value_of]

    def leaders(self, order: np.ndarray) -> np.ndarray:
        """The representative of each picture: the first in `order` that it resembles of those that have no other.

        So no chains: a picture resembles its representative, and not only one that does.
        """
        found, is_open = np.arange(len(self._rows)), np.ones(len(self._rows), dtype=bool)
        for row in order[~self._is_alone[self._place_of[order]]]:
            place = self._place_of[row]
            if is_open[place]:
                alike = self._alike(place, is_open)
                found[self._rows[alike]] = row
                is_open[alike] = False
        return found

    def first_alike(self, rows: Iterable[int], among: np.ndarray) -> np.ndarray:
        """For each picture for which `among` is true the first of `rows` that it resembles, or is; -1: none."""
        found, is_open = np.full(len(self._rows), -1), among[self._rows]
        for row in rows:
            alike = self._alike(self._place_of[row], is_open)
            found[self._rows[alike]] = row
            is_open[alike] = False
        return found

    def _alike(self, place: int, is_open: np.ndarray) -> np.ndarray:
        """The open places whose pictures resemble that at `place`, itself among them."""
        if self._is_alone[place]:
            return np.flatnonzero(is_open[place : place + 1]) + place
        value, brightness = self._value_of[place], self._keys[place] % BRIGHTNESSES
        keys = self._nearby[self._firsts[value] : self._firsts[value + 1]] * np.int64(BRIGHTNESSES)
        places = _ranges(
            np.searchsorted(self._keys, keys + max(brightness - MOST, 0)),
            np.searchsorted(self._keys, keys + min(brightness + MOST, BRIGHTNESSES - 1), side="right"),
        )
        places = places[is_open[places]]
        places = places[np.abs(self._quarters[places] - self._quarters[place]).sum(1, dtype=np.int32) <= MOST]
        one = self._thumbnails[self._rows[place]].astype(np.int16)
        alike = [np.empty(0, np.int64)]
        for start in range(0, len(places), AT_ONCE):
            some = places[start : start + AT_ONCE]
            difference = np.abs(self._thumbnails[self._rows[some]] - one)
            same = (difference.sum(1, dtype=np.int32) <= MOST) & (difference.max(1) <= LARGEST_DIFFERENCE)
            alike.append(some[same])
        return np.concatenate(alike)

    def _values_nearby(self, values: np.ndarray, starts: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
        """The hashes that a picture with each hash may resemble, itself among them: in a row, and where each's begin.

        The quarters of a hash's pictures lie in a box; none agree where boxes are further apart than MOST.
        """
        low, high = np.minimum.reduceat(self._quarters, starts), np.maximum.reduceat(self._quarters, starts)
        itself = np.arange(len(values))
        found = [itself * len(values) + itself]
        for one, other in near(values, low.sum(1, dtype=np.int32), high.sum(1, dtype=np.int32), distance):
            gaps = np.maximum(low[other] - high[one], low[one] - high[other]).clip(min=0)
            close = gaps.sum(1, dtype=np.int32) <= MOST
            one, other = one[close], other[close]
            found += [one * len(values) + other, other * len(values) + one]
        ones, others = np.divmod(np.unique(np.concatenate(found)), len(values))  # several keys find a pair
        return others.astype(np.int32), np.searchsorted(ones, np.arange(len(values) + 1))


def near(
    hashes: np.ndarray, darkest: np.ndarray, brightest: np.ndarray, distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions whose hashes differ in at most `distance` bits and whose ranges of brightness are at most MOST
    apart, in pieces, some of them more than once.

    The pigeonhole: of `distance` + n groups of bits, at least n hold no bit that differs. So each pair shares a key,
    the bits of some n groups. A group takes every so many-th bit, since neighbouring bits are of one part of the
    picture and alike in very many pictures (a white margin).
    """
    num_shared = 1 + distance // 2
    num_groups = distance + num_shared
    groups = [sum(1 << bit for bit in range(group, 64, num_groups)) for group in range(num_groups)]
    by_darkness = np.argsort(darkest, kind="stable")
    for shared in combinations(groups, num_shared):
        keys = hashes[by_darkness] & np.uint64(sum(shared))
        order = np.argsort(keys, kind="stable")
        keys, order = keys[order], by_darkness[order]
        at, step = np.flatnonzero(keys[1:] == keys[:-1]), 1
        while len(at):  # each with the next, the next but one, ... as long as key and brightness allow
            at = at[darkest[order[at + step]] - brightest[order[at]] <= MOST]
            one, other = order[at], order[at + step]
            close = np.bitwise_count(hashes[one] ^ hashes[other]) <= distance
            if close.any():
                yield one[close], other[close]
            step += 1
            at = at[: np.searchsorted(at, len(keys) - step)]
            at = at[keys[at] == keys[at + step]]


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The numbers from each start up to its end, in a row."""
    sizes = ends - starts
    return np.arange(sizes.sum()) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
