"""DVC stage: the pairs of the source that `params.data` names, as one table and the pictures a shard."""

import json
from pathlib import Path

from clip_core.config.engine import Engine
from clip_core.config.section import Section
from clip_core.config.sources import Source
from clip_core.errors import UserError
from stages.command import run


class Params(Section):
    data: Source


def main(params: Params, engine: Engine, out: Path, quarantine: Path, tombstones: Path) -> None:
    """Writes the pair tables and their pictures to `out`, and the rows that the source refused to `quarantine`.

    Rows that `tombstones` (see clip_core/data/tombstones.py) delete are refused, too, and nothing of them is written.
    """
    from clip_core.data.ingestion import ingest
    from clip_core.data.pairs import read_counts
    from clip_core.data.shards import publish
    from clip_core.data.sources import parts_of
    from clip_core.data.tombstones import read_tombstones
    from clip_core.files import replacing_folder

    results = ingest(params.data, parts_of(params.data), engine, read_tombstones(tombstones))
    counts = read_counts(results.values())
    with replacing_folder(quarantine) as folder:
        publish(results, ["rejected"], folder)
    if not counts["kept"]:
        raise UserError(
            f"{params.data.path}: not one of {counts['read']:,} rows makes a pair: {counts['by_reason']}; "
            f"see {quarantine}"
        )
    with replacing_folder(out) as folder:
        publish(results, ["pairs", "images"], folder)
        (folder / "counts.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"ingest: {counts['kept']:,} rows, {counts['images']:,} pictures; {counts['rejected']:,} rows rejected")


if __name__ == "__main__":
    run(main)
