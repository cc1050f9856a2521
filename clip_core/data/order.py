"""The rows of each step, with those of one block in memory: a function of (seed, step)."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.data.rows import COLUMNS, count_rows, kinds_of, rows_of
from clip_core.data.sampler import Epochs, arranged, blocks_of

if TYPE_CHECKING:
    import pandas as pd

    from clip_core.data.captions import Described
    from clip_core.data.store import Store


class Row(NamedTuple):
    image: int  # its place in the store
    caption: "str | Described"
    kind: int  # the same for rows of a block that are of one kind


class Order:
    """The order in which a training sees the rows of a store; threads may share it."""

    def __init__(self, store: "Store", language: str, batch: int, seed: int) -> None:
        self._store, self._language = store, language
        self.epochs = Epochs(count_rows(store, language), batch, seed)
        self._lock = threading.Lock()
        self._loaded: tuple[tuple[int, int], pd.DataFrame, np.ndarray] | None = None

    def rows(self, step: int) -> list[Row]:
        """Those of the global batch of step 1, 2, ..."""
        rows, batches, number = self._block_of(step)
        return list(_each(rows, batches[number]))

    def after(self, step: int, place: int) -> Iterator[Row]:
        """The row that comes a batch later than the one at `place` of the step's batch, and those after it."""
        rows, batches, number = self._block_of(step)
        start = (number + 1) * batches.shape[1] + place
        return _each(rows, np.roll(batches.ravel(), -start))

    def _block_of(self, step: int) -> tuple["pd.DataFrame", np.ndarray, int]:
        """The rows of the block that the step is in, its batches of row numbers, and the step's number among them."""
        epoch, block, number = self.epochs.at(step)
        with self._lock:
            if self._loaded is None or self._loaded[0] != (epoch, block):
                self._loaded = None  # never two in memory
                self._loaded = (epoch, block), *self._load(epoch, block)
            return *self._loaded[1:], number

    def _load(self, epoch: int, block: int) -> tuple["pd.DataFrame", np.ndarray]:
        import pandas as pd

        carried = self._read(epoch, block - 1).iloc[self.epochs.drawn(epoch, block - 1)[1]] if block else None
        rows = self._read(epoch, block)
        used, _, random = self.epochs.drawn(epoch, block)
        if carried is not None and len(carried):
            used = np.concatenate([np.arange(len(carried)), used + len(carried)])
            rows = pd.concat([carried, rows], ignore_index=True)
        kinds = kinds_of(rows)
        return rows[["image", "caption"]].assign(kind=kinds), arranged(used, kinds, self.epochs.batch, random)

    def _read(self, epoch: int, block: int) -> "pd.DataFrame":
        shards, _, num_rows = blocks_of(self.epochs, epoch)[block]
        rows = rows_of(self._store.pairs_of(shards, COLUMNS), self._language)
        assert len(rows) == num_rows
        return rows


def _each(rows: "pd.DataFrame", numbers: np.ndarray) -> Iterator[Row]:
    """The rows of these numbers."""
    columns = (rows[column].to_numpy()[numbers].tolist() for column in Row._fields)
    return map(Row, *columns)
