"""Rows and pictures of a test judged as the stage `validate` judges a shard."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from clip_core.all_params import load_params
from clip_core.config.validation import Validate
from clip_core.data.across import KeyFacts
from clip_core.data.verdict import ShardVerdict, judge_shard
from clip_core.data.verdict_on_all import Verdict, judge_all
from tests.conftest import ROOT

PARAMS = load_params(ROOT / "params.yaml").validate_
MAX_PIXELS = 5000  # smaller than in params.yaml, so that the pictures of the tests may be small
LIMITS = PARAMS.limits.model_copy(update={"max_pixels": MAX_PIXELS, "max_bytes": 4000})
SMALL = PARAMS.model_copy(update={"limits": LIMITS, "max_bad_share": 0.5})
NO_DUPLICATES = KeyFacts(12, 12, 12, 12, 0)


Repeats = Mapping[str, Sequence[int]]


def judged(
    rows: list[dict], images: dict[str, bytes], repeats: Repeats | None = None, params: Validate = SMALL
) -> ShardVerdict:
    """The verdict on a shard; `repeats` are the rows that earlier shards forbid, by rule."""
    return judge_shard(pd.DataFrame(rows), sorted(images.items()), params, Path("pairs-small.parquet"), repeats)


def judged_alone(verdict: ShardVerdict, facts: KeyFacts = NO_DUPLICATES, params: Validate = SMALL) -> Verdict:
    """The verdict on data that are this shard."""
    return judge_all([verdict.aggregate], facts, params)
