"""Sources of pairs, one adapter a file; each gives a `Harvest`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from clip_core.config.sources import EmojiSource, MugeSource, TableSource
from clip_core.image import read_size

if TYPE_CHECKING:
    import pandas as pd

MEASURED = ("image_sha256", "width", "height", "num_bytes")


@dataclass
class Harvest:
    """What a source gives: the pair table without what is measured on the pictures, the pictures, the rows it refused.

    All pictures and texts of valid and test are in it, also those without a partner.
    """

    pairs: "pd.DataFrame"
    images: Iterator[tuple[str, bytes]]  # image_id, encoded bytes; each once, in the order of the ids
    rejected: "pd.DataFrame"
    more: dict[str, Any] = field(default_factory=dict)  # counts worth reporting


def harvest(data: EmojiSource | TableSource | MugeSource) -> Harvest:
    """Opens the source that `params.data` names."""
    if isinstance(data, EmojiSource):
        from clip_core.data.sources.emoji import harvest_emoji

        return harvest_emoji(data)
    if isinstance(data, MugeSource):
        from clip_core.data.sources.muge import harvest_muge

        return harvest_muge(data)
    from clip_core.data.sources.table import harvest_table

    return harvest_table(data)


def measured(images: Iterator[tuple[str, bytes]], facts: dict[str, tuple]) -> Iterator[tuple[str, bytes]]:
    """Passes the pictures on and puts what it measures on each (see MEASURED) into `facts`."""
    for image_id, image in images:
        try:
            width, height = read_size(image)
        except ValueError:
            width, height = 0, 0  # validation finds out why and rejects the pair
        facts[image_id] = (sha256(image).hexdigest(), width, height, len(image))
        yield image_id, image
