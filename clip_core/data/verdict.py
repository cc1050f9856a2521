"""The verdict on a shard: which rows are kept, which are rejected and why, and what all shards are judged by."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.config.validation import Validate
from clip_core.data.aggregate import (
    EDGES,
    NUM_EXAMPLES,
    OF_PICTURES,
    OF_ROWS,
    Aggregate,
    counted,
    histogram,
)
from clip_core.data.expectations import QUALITY, Finding, findings_of, rules_of
from clip_core.data.pairs import COLUMNS, FACTS, HELD_OUT, ORIGIN
from clip_core.data.profile import profile_images
from clip_core.data.profile_table import profile_pairs

if TYPE_CHECKING:
    import pandas as pd

MEASURED_AS = {  # a column of FACTS, where the profile of a picture has another name for it
    "image_sha256": "actual_sha256",
    "width": "actual_width",
    "height": "actual_height",
    "num_bytes": "bytes",
}
SHOWN = ("line", "pair_id", "image_id", "caption", "language", "split", "licence", "mode", "actual_width", "bytes")
SHOWN_CHARACTERS = 200  # of a text of an example


@dataclass(frozen=True)
class ShardVerdict:
    """What comes out of a shard; what was read is kept or rejected."""

    kept: "pd.DataFrame"  # rows of the pair table, as they were
    rejected: "pd.DataFrame"  # with reason, file and line
    facts: "pd.DataFrame"  # a row for each picture that a kept row names
    aggregate: Aggregate


def judge_shard(
    pairs: "pd.DataFrame",
    images: Iterable[tuple[str, bytes]],
    params: Validate,
    file: Path,
    repeats: Mapping[str, Collection[int]] | None = None,
) -> ShardVerdict:
    """Measures and judges the pairs of `file` and their pictures, of which few are in memory at a time.

    `repeats` has for a rule the rows of `pairs` that earlier shards forbid (`across.duplicates_across`).
    """
    pictures = profile_images(images, params.limits.max_pixels)
    profile = profile_pairs(pairs, pictures, repeats)
    return judge(pairs, pictures, profile, findings_of(profile, rules_of(params)), file)


def judge(
    pairs: "pd.DataFrame", pictures: "pd.DataFrame", profile: "pd.DataFrame", findings: list[Finding], file: Path
) -> ShardVerdict:
    """Rejects each row under the first rule that it breaks; one of valid or test that breaks a QUALITY rule stays."""
    import pandas as pd

    reason: dict[int, str] = {}
    is_held_out = profile["split"].isin(HELD_OUT)
    for finding in findings:
        rows = finding.rows
        if finding.rule.name in QUALITY:
            rows = [row for row in rows if not is_held_out[row]]
        reason = dict.fromkeys(rows, finding.rule.name) | reason
    profile = profile.assign(
        reason=pd.Series(reason, profile.index, dtype="object"),
        file=str(file),
        line=(profile["row"] + 1).where(profile["picture_has_pair"]),
    )
    is_kept = profile["reason"].isna()
    kept = pairs[is_kept[: len(pairs)].to_numpy()]  # the profile's first rows are the pairs
    facts = pictures[pictures["image_id"].isin(kept["image_id"])]
    return ShardVerdict(
        kept,
        profile.loc[~is_kept, [*ORIGIN, *COLUMNS]],
        facts[[MEASURED_AS.get(name, name) for name in FACTS]].set_axis(list(FACTS), axis="columns"),
        _aggregate(profile, facts, findings),
    )


def staying(kept: "pd.DataFrame", findings: list[Finding]) -> dict[str, dict[str, int]]:
    """By split and rule of QUALITY, how many ids of the rows `kept` in valid and test break it; those that any does."""
    found: dict[str, dict[str, int]] = {}
    for finding in findings:
        if counted_by := QUALITY.get(finding.rule.name):
            rows = kept[kept.index.isin(finding.rows)]
            for split, number in rows.groupby("split")[counted_by].nunique().items():
                found.setdefault(str(split), {})[finding.rule.name] = int(number)
    return found


def _aggregate(profile: "pd.DataFrame", facts: "pd.DataFrame", findings: list[Finding]) -> Aggregate:
    """Of the kept rows and their pictures; how Chinese the captions are, of all rows that were read."""
    is_kept = profile["reason"].isna()
    kept = profile[is_kept]
    shares = profile["cjk_share"].dropna()
    rows = {"read": len(profile), "kept": len(kept), "rejected": len(profile) - len(kept), "pictures": len(facts)}
    counts = {
        "rows": rows,
        "rejected": counted(profile["reason"]),
        "broken": {finding.rule.name: len(finding.rows) for finding in findings if finding.rows},
        **{name: counted(kept[name]) for name in OF_ROWS},
        **{name: counted(facts[name]) for name in OF_PICTURES},
    }
    return Aggregate(
        counts,
        staying(kept[kept["split"].isin(HELD_OUT)], findings),
        {name: histogram(name, (facts if name in facts.columns else kept)[name]) for name in EDGES},
        {"cjk_share": float(shares.sum()), "zh_captions": len(shares)},
        {finding.rule.name: _examples(profile, finding) for finding in findings if finding.rows},
    )


def _examples(profile: "pd.DataFrame", finding: Finding) -> list[dict]:
    rows = profile.loc[list(finding.rows[:NUM_EXAMPLES]), ["reason", "file", *SHOWN]].astype("object")
    return [
        {
            name: value[:SHOWN_CHARACTERS] if isinstance(value, str) else int(value)
            for name, value in row.items()
            if value == value and value is not None  # not null
        }
        for row in rows.to_dict("records")
    ]
