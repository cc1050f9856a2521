"""DVC stage: the curated pairs and their pictures as one store a split."""

import json
from pathlib import Path

from clip_core.config.engine import Engine
from clip_core.config.packing import Pack
from clip_core.config.section import Section
from clip_core.errors import UserError
from stages.command import run


class Params(Section):
    pack: Pack


def main(params: Params, engine: Engine, curated: Path, raw: Path, out: Path) -> None:
    """Writes a store for each split into `out`, and how many pairs each took."""
    from clip_core.data.packing import pack_shard, pictures_of_earlier_shards
    from clip_core.data.pairs import SPLITS, read_counts, shards_in
    from clip_core.data.shards import Task, map_shards
    from clip_core.data.store import join_stores
    from clip_core.files import replacing_folder

    tasks = []
    for shard, elsewhere in pictures_of_earlier_shards(curated, shards_in(curated)):
        pairs, images = (folder / f"{name}-{shard}.parquet" for folder, name in ((curated, "pairs"), (raw, "images")))
        decides = (params.pack, sorted(elsewhere))
        tasks.append(Task(shard, pack_shard, (params.pack, pairs, images, elsewhere), (pairs, images), decides))
    results = map_shards("pack", tasks, engine)
    counts = read_counts(results.values())
    if empty := [split for split in SPLITS if not counts["images"].get(split)]:
        raise UserError(
            f"{curated}: no pictures for {', '.join(empty)}. Training, validation and test need some "
            "each: add pictures, raise `data.valid_percent` or `data.test_percent` in params.yaml, or name the split "
            "in the column `split`; what was refused lies in data/quarantine."
        )
    with replacing_folder(out) as folder:
        for split in SPLITS:
            of_shard = {shard: result / split for shard, result in results.items() if (result / split).exists()}
            manifest = join_stores(of_shard, folder / split)
            print(f"pack: {split} {manifest['num_pairs']:,} pairs of {manifest['num_images']:,} pictures")
        if params.pack.resize:
            print(f"pack: smaller training pictures save {counts['bytes_saved'] / 2**20:,.1f} MiB")
        (folder / "counts.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
