"""DVC stage: the curated pairs and their pictures as one store a split."""

from pathlib import Path

from clip_core.config.packing import Pack
from clip_core.config.section import Section
from clip_core.errors import UserError
from stages.command import run


class Params(Section):
    pack: Pack


def main(params: Params, curated: Path, raw: Path, out: Path) -> None:
    """Writes a store for each split into `out`, and how many pairs each took."""
    from clip_core.data.pairs import SPLITS, read_images, read_pairs, write_counts
    from clip_core.data.store import StoreWriter
    from clip_core.files import replacing_folder

    shard_bytes = params.pack.shard_mib * 2**20
    pairs = read_pairs(curated / "pairs.parquet")
    of_split = {split: pairs[pairs["split"] == split] for split in SPLITS}
    if empty := [split for split, rows in of_split.items() if rows.empty]:
        raise UserError(
            f"{curated / 'pairs.parquet'}: no pictures for {', '.join(empty)}. Training, validation and test need some "
            "each: add pictures, raise `data.valid_percent` or `data.test_percent` in params.yaml, or name the split "
            "in the CSV's column `split`; what was refused lies in data/quarantine."
        )
    wanted = {split: set(rows["image_id"].dropna()) for split, rows in of_split.items()}
    with replacing_folder(out) as folder:
        writers = {split: StoreWriter(folder / split, shard_bytes) for split in SPLITS}
        for image_id, image in read_images(raw):
            for split, writer in writers.items():
                if image_id in wanted[split]:
                    writer.add(image_id, image)
        manifests = {split: writer.finish(of_split[split]) for split, writer in writers.items()}
        num_packed = sum(manifest["num_pairs"] for manifest in manifests.values())
        write_counts(folder, len(pairs), num_packed, [], images={s: m["num_images"] for s, m in manifests.items()})
    print(
        "pack: " + ", ".join(f"{s} {m['num_pairs']} pairs of {m['num_images']} pictures" for s, m in manifests.items())
    )


if __name__ == "__main__":
    run(main)
