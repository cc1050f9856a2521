"""Validation as it lies on the disk: a shard's result, the pictures that the page shows, the counts of all shards."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

from clip_core.config.validation import Validate
from clip_core.data.aggregate import Aggregate
from clip_core.data.pairs import read_images, read_pairs, write_counts, write_facts, write_pairs, write_rejected
from clip_core.data.verdict import judge_shard
from clip_core.data.verdict_on_all import Verdict

AGGREGATE = "aggregate.json"


def validate_shard(
    params: Validate, pairs: Path, images: Path, repeats: Mapping[str, Collection[int]], out: Path
) -> None:
    """Fills the folder `out` with what came out for the shard of these two files."""
    verdict = judge_shard(read_pairs(pairs), read_images(images), params, pairs, repeats)
    write_pairs(verdict.kept, out / "pairs.parquet")
    write_facts(verdict.facts, out / "facts.parquet")
    write_rejected(verdict.rejected, out)
    (out / AGGREGATE).write_text(json.dumps(asdict(verdict.aggregate)), encoding="utf-8")


def read_aggregate(result: Path) -> Aggregate:
    """What `validate_shard` left in its folder for judging all shards."""
    return Aggregate(**json.loads((result / AGGREGATE).read_text(encoding="utf-8")))


def picture_of(pairs: str, image_id: str) -> bytes | None:
    """The encoded picture that lies beside the shard's pair table `pairs`, if there is one."""
    import pyarrow.parquet as pq

    images = Path(pairs).with_name(Path(pairs).name.replace("pairs-", "images-", 1))
    found = pq.read_table(images, columns=["image"], filters=[("image_id", "=", image_id)])["image"].to_pylist()
    return found[0] if found else None


def write_validated_counts(verdict: Verdict, texts_gone: int, folder: Path) -> None:
    """Writes `counts.json`: how many rows came in, went on and were rejected, and why; what stayed or left besides."""
    also = {"break_a_rule_and_stay": verdict.aggregate.stay, "texts_that_left_with_their_pictures": texts_gone}
    more = {name: count for name, count in also.items() if count}
    write_counts(folder, verdict.read, verdict.read - verdict.rejected, verdict.aggregate.counts["rejected"], **more)
