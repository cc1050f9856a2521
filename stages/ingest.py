"""DVC stage: the pairs of the source that `params.data` names, as one table and picture shards."""

from pathlib import Path

from clip_core.config.section import Section
from clip_core.config.sources import Source
from stages.command import run


class Params(Section):
    data: Source


def main(params: Params, out: Path, quarantine: Path) -> None:
    """Writes the pair table and its pictures to `out`, and the rows that the source refused to `quarantine`."""
    from clip_core.data.pairs import write_counts, write_images, write_pairs, write_rejected
    from clip_core.data.sources import MEASURED, harvest, measured, parts_of
    from clip_core.files import replacing_folder

    (part,) = parts_of(params.data)
    found = harvest(params.data, part)
    with replacing_folder(quarantine) as folder:
        write_rejected(found.rejected, folder)
    with replacing_folder(out) as folder:
        facts: dict[str, tuple] = {}
        write_images(measured(found.images, facts), folder)
        pairs = found.pairs
        for position, column in enumerate(MEASURED):
            pairs[column] = pairs["image_id"].map({image_id: fact[position] for image_id, fact in facts.items()})
        numbers = ["width", "height", "num_bytes"]
        pairs[numbers] = pairs[numbers].fillna(0).astype("int64")  # of a text without picture
        write_pairs(pairs, folder / "pairs.parquet")
        num_read = len(pairs) + len(found.rejected)
        write_counts(folder, num_read, len(pairs), found.rejected["reason"], images=len(facts), **found.more)
    print(f"ingest: {len(pairs)} rows, {len(facts)} pictures; {len(found.rejected)} rows rejected")


if __name__ == "__main__":
    run(main)
