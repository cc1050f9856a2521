"""Ingestion of a source's parts: their pairs with what is measured on the pictures, these, and the rows refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.data.pairs import write_counts, write_images, write_pairs, write_rejected
from clip_core.data.shards import Task, map_shards, record_files
from clip_core.data.sources import MEASURED, Part, harvest, measured

if TYPE_CHECKING:
    from clip_core.config.engine import Engine
    from clip_core.config.sources import Source


def ingest(data: "Source", parts: Sequence[Part], engine: "Engine") -> dict[str, Path]:
    """Shard -> the folder that `ingest_part` has filled; what was ingested before is not read again."""
    return map_shards(
        "ingest",
        [Task(part.name, ingest_part, (data, part), part.reads, (data, part.at)) for part in parts],
        engine,
    )


def ingest_part(data: "Source", part: Part, out: Path) -> None:
    """Fills the folder `out`; of a part without pairs with its rejected rows and counts alone."""
    found = harvest(data, part)
    facts: dict[str, tuple] = {}
    if len(found.pairs):
        write_images(measured(found.images, facts), out / "images.parquet")
        pairs = found.pairs.assign(
            **{
                column: found.pairs["image_id"].map({image_id: fact[position] for image_id, fact in facts.items()})
                for position, column in enumerate(MEASURED)
            }
        )
        numbers = ["width", "height", "num_bytes"]
        pairs[numbers] = pairs[numbers].fillna(0).astype("int64")  # of a text without picture
        write_pairs(pairs, out / "pairs.parquet")
    write_rejected(found.rejected, out)
    reasons = found.rejected["reason"]
    write_counts(out, len(found.pairs) + len(reasons), len(found.pairs), reasons, images=len(facts), **found.more)
    if found.files:
        record_files(found.files, out)
