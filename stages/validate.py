"""DVC stage: Great Expectations over the profile table; bad rows to quarantine, a bad batch stops the pipeline here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from clip_core.config.section import Section
from clip_core.config.validation import Validate
from clip_core.errors import UserError
from stages.command import run

if TYPE_CHECKING:
    import pandas as pd


class Params(Section):
    validate_: Annotated[Validate, Field(alias="validate")]


def main(params: Params, raw: Path, out: Path, quarantine: Path, page: Path) -> None:
    """Writes the clean pair table and the pictures' fingerprints to `out`, unless the batch as a whole is refused."""
    from clip_core.data.expectations import findings_of, rules_of
    from clip_core.data.pairs import (
        HELD_OUT,
        read_images,
        read_pairs,
        shards_in,
        write_counts,
        write_fingerprints,
        write_pairs,
        write_rejected,
    )
    from clip_core.data.profile import profile_images, profile_pairs
    from clip_core.data.verdict import judge, write_page
    from clip_core.files import replacing_folder

    def texts_of(rows: "pd.DataFrame") -> set[str]:
        return set(rows.loc[rows["split"].isin(HELD_OUT), "text_id"].dropna())

    limits = params.validate_
    pairs = read_pairs(raw)
    images = profile_images(read_images(raw), limits.limits.max_pixels)
    profile = profile_pairs(pairs, images)
    verdict = judge(profile, findings_of(profile, rules_of(limits)), limits.max_bad_share, raw)
    with replacing_folder(quarantine) as folder:
        write_rejected(verdict.rejected, folder)
    with replacing_folder(page) as folder:
        write_page(verdict, folder)
    if verdict.refusals:
        raise UserError(
            f"{raw}: this batch is refused: {'; '.join(verdict.refusals)}. See {page / 'index.html'} and "
            f"{quarantine}; mend the source or the limits in params.yaml (validate)."
        )
    kept = pairs[~pairs.index.isin(verdict.rejected.index)]
    with replacing_folder(out) as folder:
        for shard in shards_in(raw):
            ids = read_pairs(raw / f"pairs-{shard}.parquet")["pair_id"]
            of_shard = kept[kept["pair_id"].isin(ids)]
            write_pairs(of_shard, folder / f"pairs-{shard}.parquet")
            write_fingerprints(images[images["image_id"].isin(of_shard["image_id"])], folder / f"facts-{shard}.parquet")
        lost = len(texts_of(pairs) - texts_of(kept))
        told = {"break_a_rule_and_stay": verdict.stay, "texts_that_left_with_their_pictures": lost}
        told = {name: count for name, count in told.items() if count}
        write_counts(folder, len(profile), len(kept), verdict.rejected["reason"], **told)
    print(
        f"validate: {len(kept)} of {len(profile)} rows pass; {len(verdict.rejected)} rejected (see {page}/index.html)"
    )


if __name__ == "__main__":
    run(main)
