"""DVC stage: each shard judged by itself, then all together; bad rows to quarantine, bad data stop here."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from clip_core.config.engine import Engine
from clip_core.config.section import Section
from clip_core.config.validation import Validate
from clip_core.errors import UserError
from stages.command import run


class Params(Section):
    validate_: Annotated[Validate, Field(alias="validate")]


def main(params: Params, engine: Engine, raw: Path, out: Path, quarantine: Path, page: Path) -> None:
    """Writes the clean pair tables and the facts about their pictures to `out`, unless they are refused as a whole."""
    from clip_core.data.across import duplicates_across, key_facts, num_texts_gone, rows_by_rule
    from clip_core.data.pairs import shards_in
    from clip_core.data.shards import Task, map_shards, publish
    from clip_core.data.validation import picture_of, read_aggregate, validate_shard, write_validated_counts
    from clip_core.data.validation_page import write_page
    from clip_core.data.verdict_on_all import judge_all
    from clip_core.files import replacing_folder

    limits = params.validate_
    files = {shard: raw / f"pairs-{shard}.parquet" for shard in shards_in(raw)}
    repeated = duplicates_across(list(files.values()))
    tasks = []
    for shard, file in files.items():
        images, repeats = raw / f"images-{shard}.parquet", rows_by_rule(repeated, shard)
        arguments = (limits, file, images, repeats)
        tasks.append(Task(shard, validate_shard, arguments, (file, images), (limits, repeats)))
    results = map_shards("validate", tasks, engine)
    kept = [result / "pairs.parquet" for result in results.values()]
    verdict = judge_all(map(read_aggregate, results.values()), key_facts(kept), limits)
    with replacing_folder(quarantine) as folder:
        publish(results, ["rejected"], folder)
    with replacing_folder(page) as folder:
        write_page(verdict, folder, picture_of, limits.limits.max_pixels)
    if verdict.refusals:
        raise UserError(
            f"{raw}: this batch is refused: {'; '.join(verdict.refusals)}. See {page / 'index.html'} and "
            f"{quarantine}; mend the source or the limits in params.yaml (validate)."
        )
    with replacing_folder(out) as folder:
        publish(results, ["pairs", "facts"], folder)
        write_validated_counts(verdict, num_texts_gone(list(files.values()), kept), folder)
    print(
        f"validate: {verdict.read - verdict.rejected:,} of {verdict.read:,} rows pass; {verdict.rejected:,} rejected "
        f"(see {page}/index.html)"
    )


if __name__ == "__main__":
    run(main)
