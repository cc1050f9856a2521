"""What only all shards together can tell: sums, repeated ids, duplicates, drift; each refuses data by its own rule."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_core.data.across import KeyFacts, duplicates_across, key_facts, num_texts_gone, rows_by_rule
from clip_core.data.aggregate import EDGES, NUM_VALUES, OTHER, Aggregate, histogram, merged
from clip_core.data.baseline import write_baseline
from clip_core.data.drift import drift_of, population_stability_index, read_baseline
from clip_core.data.expectations import DRIFTING
from clip_core.data.pairs import write_pairs
from clip_core.data.verdict import judge_shard
from clip_core.data.verdict_on_all import judge_all, told
from clip_core.errors import UserError
from tests.conftest import ROOT
from tests.judged import NO_DUPLICATES, PARAMS, SMALL, judged, judged_alone
from tests.small_raw import pair_row, small_raw, write_raw
from tests.stage_calls import call


def tables(folder: Path, **shards: list[dict]) -> list[Path]:
    """A pair table for each shard, in the order of the names."""
    for name, rows in shards.items():
        write_pairs(pd.DataFrame(rows), folder / f"pairs-{name}.parquet")
    return sorted(folder.glob("pairs-*.parquet"))


def test_the_aggregates_of_parts_add_up_to_that_of_the_whole() -> None:
    rows, images = small_raw()
    rows[2]["licence"] = ""
    whole = judged(rows, images).aggregate
    parts = [
        judged(rows[i : i + 4], {row["image_id"]: images[row["image_id"]] for row in rows[i : i + 4]}).aggregate
        for i in (0, 4, 8)
    ]
    total = merged(parts)
    assert (total.counts, total.histograms, total.stay) == (whole.counts, whole.histograms, whole.stay)
    assert total.sums == pytest.approx(whole.sums)
    assert [row["pair_id"] for row in total.examples["licence_given"]] == [rows[2]["pair_id"]]


def test_an_aggregate_is_the_same_after_a_way_through_json() -> None:
    rows, images = small_raw()
    rows[2]["licence"] = ""
    aggregate = judged(rows, images).aggregate
    assert Aggregate(**json.loads(json.dumps(asdict(aggregate)))) == aggregate


def test_an_aggregate_stays_small_however_many_licences_there_are() -> None:
    shards = [Aggregate(counts={"licence": {f"licence {i}-{j}": 1 for j in range(80)}}) for i in range(5)]
    licences = merged(shards).counts["licence"]
    assert len(licences) == NUM_VALUES + 1 and licences[OTHER] == 300 and sum(licences.values()) == 400


def test_a_histogram_counts_each_value_in_the_bin_it_begins_or_lies_in() -> None:
    assert EDGES["side"][:4] == (0, 16, 32, 64)
    assert histogram("side", np.array([0, 15, 16, 31.9, 32, 10**6, np.nan]))[:3] == [2, 2, 1]
    assert sum(histogram("side", np.array([0, 10**6, np.nan]))) == 2


def test_a_pair_id_of_an_earlier_shard_and_an_image_id_with_other_bytes_are_found_where_they_come_later(
    tmp_path: Path,
) -> None:
    """Against the slow obvious way, on ids that repeat at random."""
    draw = random.Random(5)
    shards = {
        name: [
            pair_row(f"picture-{draw.randrange(40)}", bytes([draw.randrange(2)]), "字", "train")
            | {"pair_id": draw.choice(["", None, *map(str, range(60))])}
            for _ in range(20)
        ]
        for name in ("a", "b", "c.1")
    }
    shards["b"][3] |= {"image_id": None, "image_sha256": None}
    expected, pair_ids, pictures = set(), {}, {}
    for number, (name, rows) in enumerate(shards.items()):
        for row, values in enumerate(rows):
            if values["pair_id"] and pair_ids.setdefault(values["pair_id"], number) < number:
                expected.add((name, row, "pair_is_new"))
            if values["image_id"]:
                first, sha256 = pictures.setdefault(values["image_id"], (number, values["image_sha256"]))
                if first < number and sha256 != values["image_sha256"]:
                    expected.add((name, row, "picture_is_one"))
    found = duplicates_across(tables(tmp_path, **shards))
    assert len(expected) > 20 and set(found.itertuples(index=False, name=None)) == expected
    assert rows_by_rule(found, "a") == {}
    assert {(rule, row) for rule, rows in rows_by_rule(found, "b").items() for row in rows} == {
        (rule, row) for shard, row, rule in expected if shard == "b"
    }


def test_what_a_later_shard_repeats_is_rejected_by_the_stage_and_its_picture_with_it(tmp_path: Path) -> None:
    rows, images = small_raw()
    raw = write_raw(
        [row | {"pair_id": f"{row['pair_id']}/{i}"} for i in range(20) for row in rows], images, tmp_path / "a"
    )
    later = write_raw(
        [rows[4] | {"pair_id": "other"}, rows[0] | {"pair_id": f"{rows[0]['pair_id']}/7"}], images, tmp_path / "b"
    )
    for kind in ("pairs", "images"):
        (later / f"{kind}-small.parquet").rename(raw / f"{kind}-z.parquet")
    params = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    params.write_text(text.replace("max_bad_share: 0.01", "max_bad_share: 0.5"), encoding="utf-8")
    call("validate", params, raw, tmp_path / "valid", tmp_path / "quarantine", tmp_path / "page")
    rejected = pd.read_parquet(tmp_path / "quarantine" / "rejected-z.parquet")
    assert rejected["reason"].value_counts().to_dict() == {"picture_has_pair": 10, "pair_is_new": 1}
    assert rejected.loc[rejected["reason"] == "pair_is_new", ["file", "line"]].to_numpy().tolist() == [
        [str(raw / "pairs-z.parquet"), 2]
    ]
    assert pd.read_parquet(tmp_path / "valid" / "pairs-z.parquet")["pair_id"].tolist() == ["other"]
    assert pd.read_parquet(tmp_path / "valid" / "facts-z.parquet")["image_id"].tolist() == ["picture-04"]
    counts = json.loads((tmp_path / "valid" / "counts.json").read_text())
    assert (counts["read"], counts["kept"], counts["rejected"]) == (252, 241, 11)


def test_key_facts_are_counted_over_all_shards(tmp_path: Path) -> None:
    no_text = dict.fromkeys(("text_id", "caption", "language", "caption_kind"))
    shards = tables(
        tmp_path,
        a=[pair_row("1", b"one", "猫", "train"), pair_row("2", b"two", "猫", "train")],
        b=[pair_row("3", b"one", "狗", "test"), pair_row("4", b"four", "", "test") | no_text],
    )
    assert key_facts(shards) == KeyFacts(3, 2, 4, 3, 1)
    assert num_texts_gone(shards, shards[:1]) == 1 and num_texts_gone(shards, shards[1:]) == 0


@pytest.mark.parametrize(
    ("rule", "facts", "params"),
    [
        ("captions_differ", KeyFacts(1000, 4, 12, 12, 0), {}),
        ("pictures_differ", KeyFacts(12, 12, 100, 49, 0), {}),
        ("splits_are_apart", KeyFacts(12, 12, 100, 100, 6), {}),
        ("batch_is_chinese", NO_DUPLICATES, {"min_mean_cjk_share": 1.0}),
        ("few_rows_are_bad", NO_DUPLICATES, {"max_bad_share": 0.05}),
    ],
)
def test_each_rule_about_all_refuses_by_itself(rule: str, facts: KeyFacts, params: dict) -> None:
    rows, images = small_raw()
    rows[0]["caption"] = "a cat"
    rows[1]["licence"] = ""
    verdict = judged(rows, images)
    assert [
        refusal.split(":")[0] for refusal in judged_alone(verdict, facts, SMALL.model_copy(update=params)).refusals
    ] == [rule]
    assert not judged_alone(verdict).refusals


def test_nothing_at_all_is_refused_with_all_reasons() -> None:
    empty = judge_shard(pd.DataFrame(small_raw()[0]).head(0), [], SMALL, Path("pairs-small.parquet")).aggregate
    for aggregates in ([], [empty], [Aggregate()]):
        refusals = judge_all(aggregates, KeyFacts(0, 0, 0, 0, 0), SMALL).refusals
        assert [refusal.split(":")[0] for refusal in refusals] == ["batch_not_empty", "batch_is_chinese"]
        assert "not a single row" in refusals[0] and "nothing to observe" in refusals[1]


def test_the_drift_of_equal_shares_is_nothing_and_that_of_others_is_the_formula() -> None:
    assert population_stability_index([10**6, 3 * 10**6], [10**5, 3 * 10**5]) == pytest.approx(0, abs=1e-6)
    assert population_stability_index([10**6, 10**6], [10**6, 3 * 10**6]) == pytest.approx(0.25 * np.log(3), abs=1e-4)


def test_a_drift_is_told_only_of_a_thousand_values_and_refuses_above_its_limit(tmp_path: Path) -> None:
    valid = tmp_path / "valid"
    valid.mkdir()
    tables(valid, a=[pair_row(str(i), b"", "字" * (1 + i % 9), "train") for i in range(1500)])
    path = tmp_path / "baseline.json"
    before = write_baseline(valid, path)
    assert read_baseline(path) == before and sum(before["caption_length"]) == 1500
    assert drift_of(before, before) == {"caption_length": 0, "side": 0, "bytes": 0}
    params = PARAMS.model_copy(update={"baseline": str(path), "min_mean_cjk_share": 0.0})
    aggregate = Aggregate(
        counts={"rows": {"read": 1500, "kept": 1500, "rejected": 0}}, histograms=before,
        sums={"cjk_share": 1500.0, "zh_captions": 1500},
    )  # fmt: skip
    assert not judge_all([aggregate], NO_DUPLICATES, params).refusals
    longer = {**before, "caption_length": before["caption_length"][::-1]}
    few = {name: [n // 2 for n in counts] for name, counts in longer.items()}
    for histograms, number in ((longer, 1), (few, 0)):
        changed = Aggregate(aggregate.counts, {}, histograms, aggregate.sums)
        refusals = judge_all([changed], NO_DUPLICATES, params).refusals
        assert [refusal.split(":")[0] for refusal in refusals] == ["drift_of_caption_length"] * number


WRONG_COUNTS = {name: {"edges": EDGES[name], "counts": [1] * 19} for name in DRIFTING}  # captions' lengths: 20 bins


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        '{"side": 3}',
        '{"side": {"edges": [1], "counts": [2]}}',
        "\xff",
        "[" * 10_000,
        json.dumps(WRONG_COUNTS),
    ],
)
def test_a_baseline_that_is_missing_or_none_of_this_version_is_named_with_the_remedy(
    text: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"baseline\.json: .*renew it: python -m clip_core\.data\.baseline data/valid"):
        read_baseline(path)


def test_what_was_observed_is_told_in_numbers_that_people_read() -> None:
    assert [told(107_445), told(0.00598), told(0.0)] == ["107,445", "0.00598", "0"]


def test_the_committed_baseline_is_one_of_this_version() -> None:
    assert sum(read_baseline(ROOT / str(PARAMS.baseline))["side"]) > 1000
