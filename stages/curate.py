"""DVC stage: duplicates and leakage between the splits leave the training pairs, each rule counted."""

from pathlib import Path

from clip_core.config.curation import Curate
from clip_core.config.section import Section
from stages.command import run


class Params(Section):
    curate: Curate


def main(params: Params, valid: Path, out: Path, quarantine: Path) -> None:
    """Writes the pairs that stay, with the column `seen`, to `out`, and the others with their rule to `quarantine`."""
    from clip_core.data.curate import RULES, curate, near_duplicate_groups
    from clip_core.data.pairs import (
        COLUMNS,
        ORIGIN,
        read_fingerprints,
        read_pairs,
        shards_in,
        write_counts,
        write_pairs,
        write_rejected,
    )
    from clip_core.files import replacing_folder

    distance = params.curate.near_duplicate_distance
    pairs = read_pairs(valid)
    looks = near_duplicate_groups(read_fingerprints(valid), distance)
    judged = curate(pairs, looks, RULES).assign(
        near_duplicate_group=pairs["image_id"].map(looks.groupby(looks).transform(lambda g: g.index[0]))
    )
    stays = judged["reason"].isna()
    kept = judged[stays].drop(columns="reason")
    rejected = judged[~stays].assign(file=str(valid), line=judged.index[~stays] + 1)
    with replacing_folder(quarantine) as folder:
        write_rejected(rejected[[*ORIGIN, *COLUMNS]], folder)
    with replacing_folder(out) as folder:
        for shard in shards_in(valid):
            ids = read_pairs(valid / f"pairs-{shard}.parquet")["pair_id"]
            write_pairs(kept[kept["pair_id"].isin(ids)], folder / f"pairs-{shard}.parquet")
        rules = {name: int((rejected["reason"] == name).sum()) for name in RULES}
        write_counts(folder, len(pairs), len(kept), rejected["reason"], rules=rules)
    print(f"curate: {len(kept)} of {len(pairs)} pairs stay; " + ", ".join(f"{n} {name}" for name, n in rules.items()))


if __name__ == "__main__":
    run(main)
