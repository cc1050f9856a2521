"""Sources of pairs, one adapter a file: a source is cut into parts, and each part gives a `Harvest`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_core.image import read_size

if TYPE_CHECKING:
    import pandas as pd

    from clip_core.config.sources import Source

ADAPTERS = {  # data.source -> the module that has `parts_of` and `harvest` for it
    "emoji": "clip_core.data.sources.emoji",
    "muge": "clip_core.data.sources.muge",
    "table": "clip_core.data.sources.table",
}
MEASURED = ("image_sha256", "width", "height", "num_bytes")


@dataclass(frozen=True)
class Part:
    """A piece of a source that is read by itself, in any process, and becomes one shard of the data."""

    name: str  # of the shard, of [a-z0-9.-]; it stays when other parts come and go
    reads: tuple[Path, ...]  # the files whose bytes decide what comes out
    at: tuple[int | str, ...] = ()  # where in them, in the adapter's own terms


@dataclass
class Harvest:
    """What a part gives: the pair table without what is measured on the pictures, the pictures, the rows it refused.

    All pictures and texts of valid and test are in it, also those without a partner. A picture lies in the part of its
    pairs.
    """

    pairs: "pd.DataFrame"
    images: Iterator[tuple[str, bytes]]  # image_id, encoded bytes; each once, in the order of the ids
    rejected: "pd.DataFrame"
    more: dict[str, Any] = field(default_factory=dict)  # counts worth reporting
    files: Sequence[Path] = ()  # that were read, or looked for, beside those of the part: `path/cat.jpg` of a row


def parts_of(data: "Source") -> list[Part]:
    """The parts of the source that `params.data` names, in the order of their names."""
    return sorted(import_module(ADAPTERS[data.source]).parts_of(data), key=lambda part: part.name)


def harvest(data: "Source", part: Part) -> Harvest:
    """Reads the part; rows that can not be pairs are in `rejected`, a file that can not be read raises UserError."""
    return import_module(ADAPTERS[data.source]).harvest(data, part)


def measured(images: Iterator[tuple[str, bytes]], facts: dict[str, tuple]) -> Iterator[tuple[str, bytes]]:
    """Passes the pictures on and puts what it measures on each (see MEASURED) into `facts`."""
    for image_id, image in images:
        try:
            width, height = read_size(image)
        except ValueError:
            width, height = 0, 0  # validation finds out why and rejects the pair
        facts[image_id] = (sha256(image).hexdigest(), width, height, len(image))
        yield image_id, image
