"""Which pictures make which batch: a function of (seed, epoch), without the same concept twice in a batch."""

import zlib

import numpy as np

from clip_core.errors import UserError


def random_at(seed: int, purpose: str, number: int) -> np.random.Generator:
    """The random numbers for `purpose` at step or epoch `number`; nothing else draws from them."""
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), number))


def batches_of_epoch(concepts: np.ndarray, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Rows of the epoch's batches (num_batches, batch): every row at most once, fewer than `batch` left out.

    `concepts` numbers each row's concept from 0. Two pictures of one concept would be each other's false negatives,
    so they go to different batches; only a concept of more rows than there are batches has to repeat.
    """
    num_batches = len(concepts) // batch
    if num_batches == 0:
        raise UserError(f"global_batch is {batch}, but there are only {len(concepts)} training pictures; lower it")
    random = random_at(seed, "order", epoch)
    rows = random.permutation(len(concepts))[: num_batches * batch]
    place = random.permutation(concepts.max() + 1)
    rows = rows[np.argsort(place[concepts[rows]], kind="stable")]  # the pictures of a concept side by side ...
    dealt = rows.reshape(batch, num_batches).T  # ... then dealt like cards
    return dealt[random.permutation(num_batches)]
