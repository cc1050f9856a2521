"""Ingestion of a source's parts: their pairs with what is measured on the pictures, these, and the rows refused.

What a deletion request names stays behind here, and no later stage ever sees it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.data.pairs import write_counts, write_images, write_pairs, write_rejected
from clip_core.data.shards import Task, map_shards, record_files
from clip_core.data.sources import MEASURED, Part, harvest, measured
from clip_core.data.tombstones import REASON, Tombstones, is_hit

if TYPE_CHECKING:
    import pandas as pd

    from clip_core.config.engine import Engine
    from clip_core.config.sources import Source


def ingest(
    data: "Source", parts: Sequence[Part], engine: "Engine", deleted: Tombstones = frozenset()
) -> dict[str, Path]:
    """Shard -> the folder that `ingest_part` has filled; what was ingested before is not read again."""
    decides = [sorted(deleted)] if deleted else []
    return map_shards(
        "ingest",
        [Task(part.name, ingest_part, (data, part, deleted), part.reads, (data, part.at, *decides)) for part in parts],
        engine,
    )


def ingest_part(data: "Source", part: Part, deleted: Tombstones, out: Path) -> None:
    """Fills the folder `out`; of a part without pairs with its rejected rows and counts alone.

    Of rows that are `deleted` there is the reason, and nothing else.
    """
    found = harvest(data, part)
    facts: dict[str, tuple] = {}
    pairs, rejected, num_images = found.pairs, found.rejected, 0
    if len(pairs):
        hit = is_hit(pairs, deleted)
        gone = set(pairs["image_id"][hit]) - set(pairs["image_id"][~hit])

        def images() -> Iterator[tuple[str, bytes]]:
            nonlocal num_images
            for image_id, image in measured(found.images, facts):
                if image_id not in gone and ("image_sha256", facts[image_id][0]) not in deleted:
                    num_images += 1
                    yield image_id, image

        write_images(images(), out / "images.parquet")
        pairs = pairs.assign(
            **{
                column: pairs["image_id"].map({image_id: fact[position] for image_id, fact in facts.items()})
                for position, column in enumerate(MEASURED)
            }
        )
        numbers = ["width", "height", "num_bytes"]
        pairs[numbers] = pairs[numbers].fillna(0).astype("int64")  # of a text without picture
    if deleted:
        pairs, rejected = _without(pairs, rejected, deleted)
    if len(pairs):
        write_pairs(pairs, out / "pairs.parquet")
    else:
        (out / "images.parquet").unlink(missing_ok=True)
    write_rejected(rejected, out)
    reasons = rejected["reason"]
    write_counts(out, len(pairs) + len(reasons), len(pairs), reasons, images=num_images, **found.more)
    if found.files:
        record_files(found.files, out)


def _without(
    pairs: "pd.DataFrame", rejected: "pd.DataFrame", deleted: Tombstones
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The pairs and the rejected rows that stay, these with a row for each that does not, which tells the reason."""
    import pandas as pd

    hit, also = is_hit(pairs, deleted), is_hit(rejected, deleted)
    row = {"reason": REASON, "file": "", "line": 0}
    return pairs[~hit], pd.concat([rejected[~also], pd.DataFrame([row] * int(hit.sum() + also.sum()), columns=[*row])])
