"""Which rows make which batch: a function of (seed, epoch, block) and of how many rows each shard has.

An epoch's shards come in a random order; neighbours make a block, whose rows are shuffled and arranged so that rows of
one kind stay apart. What does not fill a batch goes to the next block. Only an epoch's last rows are left out.
"""

import zlib
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

BLOCK_ROWS = 131_072  # a block has at most so many, or one shard, or a batch: it is what a training has in memory


def random_at(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The random numbers for `purpose` at a step, or at an epoch and block; nothing else draws from them.

    A last number of 0 is as none: numpy fills up with zeros.
    """
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), *numbers))


def arranged(rows: np.ndarray, kinds: np.ndarray, batch: int, random: np.random.Generator) -> np.ndarray:
    """The rows, all of them, as batches (num_batches, batch); `kinds` numbers each row's kind from 0.

    Two rows of one kind would be each other's false negatives, so they go to different batches; only a kind of more
    rows than there are batches has to repeat.
    """
    num_batches = len(rows) // batch
    place = random.permutation(kinds.max() + 1)
    rows = rows[np.argsort(place[kinds[rows]], kind="stable")]  # the rows of a kind side by side ...
    dealt = rows.reshape(batch, num_batches).T  # ... then dealt like cards
    return dealt[random.permutation(num_batches)]


class Block(NamedTuple):
    """A stretch of an epoch."""

    shards: list[int]
    first: int  # the number of rows that the epoch's blocks before have
    num_rows: int


@dataclass(frozen=True)
class Epochs:
    """How the rows of the shards make epochs of batches."""

    num_rows: tuple[int, ...]  # of each shard
    batch: int
    seed: int

    @cached_property
    def num_batches(self) -> int:
        """In an epoch."""
        return sum(self.num_rows) // self.batch  # one at least: see check_batch in train/loop.py

    def at(self, step: int) -> tuple[int, int, int]:
        """Where step 1, 2, ... finds its rows: epoch, block and the batch's number in it."""
        epoch, number = divmod(step - 1, self.num_batches)
        firsts = [block.first // self.batch for block in blocks_of(self, epoch)]  # batches before each block
        block = bisect_right(firsts, number) - 1
        return epoch, block, number - firsts[block]

    def drawn(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
        """The rows that block `number` uses itself, and those it leaves to the next; whose numbers are drawn next."""
        block, random = blocks_of(self, epoch)[number], random_at(self.seed, "order", epoch, number)
        left = (block.first + block.num_rows) % self.batch
        rows = random.permutation(block.num_rows)
        return rows[: len(rows) - left], rows[len(rows) - left :], random


@lru_cache(maxsize=2)
def blocks_of(epochs: Epochs, epoch: int) -> list[Block]:
    """The epoch's blocks; each has as many rows as a batch at least."""
    shards: list[int] = []
    num_rows, blocks = 0, []
    for shard in random_at(epochs.seed, "shards", epoch).permutation(len(epochs.num_rows)).tolist():
        if num_rows >= epochs.batch and num_rows + epochs.num_rows[shard] > BLOCK_ROWS:
            blocks.append((shards, num_rows))
            shards, num_rows = [], 0
        shards, num_rows = [*shards, shard], num_rows + epochs.num_rows[shard]
    if num_rows < epochs.batch and blocks:  # too few for themselves
        before, num_before = blocks.pop()
        shards, num_rows = before + shards, num_before + num_rows
    blocks.append((shards, num_rows))
    firsts = np.cumsum([0, *(num for _, num in blocks)]).tolist()
    return [Block(sorted(shards), first, num) for (shards, num), first in zip(blocks, firsts, strict=False)]
