"""Several sources become one data set: ids apart, thinned as asked, what is held out whole, all of it counted."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from clip_core.config.sources import MixtureSource, Source
from clip_core.data.sources import Harvest
from tests.conftest import ROOT
from tests.harvested import harvested
from tests.test_muge_source import data_set, text_line

CACHE = ROOT / ".cache" / "iconpark"
ICONPARK = {"source": "iconpark", "path": str(CACHE), "valid_percent": 10, "test_percent": 10}


@pytest.fixture(autouse=True)
def _beside_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MUGE's index is kept in the folder that the process runs in."""
    monkeypatch.chdir(tmp_path)


def mixed(name: str, source: dict, **change: object) -> dict:
    return {"name": name, "weight": 1.0, "max_pairs": None, "licence": None, "source": source} | change


def mixture(path: Path, *sources: dict) -> MixtureSource:
    tree = {"source": "mixture", "path": str(path), "sources": sources}
    found = TypeAdapter(Source).validate_json(json.dumps(tree))
    assert isinstance(found, MixtureSource)
    return found


def icons(**change: object) -> Harvest:
    return harvested(mixture(CACHE, mixed("icons", ICONPARK, **change)))


def test_ids_of_two_sources_can_not_clash_and_a_licence_can_be_given(tmp_path: Path) -> None:
    alone, same = harvested(data_set(tmp_path)), data_set(tmp_path).model_dump()
    found = harvested(mixture(tmp_path, mixed("one", same), mixed("two", same, licence="mine")))
    pairs = found.pairs.sort_values("pair_id")
    assert pairs["pair_id"].is_unique and len(pairs) == 2 * len(alone.pairs)
    assert pairs[["pair_id", "image_id", "text_id", "source", "licence"]].iloc[0].tolist() == [
        "one/test/7/0",
        "one/test/0",
        "one/test/7",
        "muge",
        "CC0-1.0",
    ]
    assert set(pairs[pairs["pair_id"].str.startswith("two/")]["licence"]) == {"mine"}
    assert pairs["concept_id"].isna().all() and pairs["group"].isna().all()
    images = list(found.images)
    assert sorted(image_id for image_id, _ in images) == sorted(set(pairs["image_id"]))
    assert len({image for _, image in images}) == len(images) / 2


def test_refused_rows_keep_their_file_and_line(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    with (tmp_path / "train_texts.jsonl").open("a", encoding="utf-8") as file:
        file.write(text_line(10, "少一张", [98]))
    rejected = harvested(mixture(tmp_path, mixed("one", data.model_dump()))).rejected
    file = str(tmp_path / "train_texts.jsonl")
    assert rejected[["reason", "file", "line", "image_id"]].to_numpy().tolist() == [
        ["image_missing", file, 4, "one/train/98"]
    ]


def test_a_weight_is_the_share_of_the_training_pairs_that_stays() -> None:
    whole, half, quarter = (icons(weight=weight) for weight in (1.0, 0.5, 0.25))
    held_out = [set(one.pairs[one.pairs["split"] != "train"]["pair_id"]) for one in (whole, quarter)]
    assert held_out[0] == held_out[1]
    num_train = (whole.pairs["split"] == "train").sum()
    left_out = quarter.more["sources"]["icons"]["left_out_by_weight"]
    assert len(quarter.pairs) + left_out == len(whole.pairs)
    assert 1 - left_out / num_train == pytest.approx(0.25, abs=0.01)
    assert set(quarter.pairs["pair_id"]) < set(half.pairs["pair_id"]) < set(whole.pairs["pair_id"])
    assert [image_id for image_id, _ in quarter.images] == sorted(set(quarter.pairs["image_id"]))


def test_a_cap_holds_for_training_pairs_alone_and_keeps_the_same_ones_under_a_larger_one() -> None:
    some, more = icons(max_pairs=1000), icons(max_pairs=2000, weight=0.9)
    train = [one.pairs[one.pairs["split"] == "train"] for one in (some, more)]
    assert [len(pairs) for pairs in train] == [1000, 2000]
    assert set(train[0]["pair_id"]) < set(train[1]["pair_id"])
    counts = more.more["sources"]["icons"]
    assert counts["left_out_by_weight"] > 2000
    assert counts["pairs"] + counts["left_out_by_weight"] + counts["left_out_by_max_pairs"] == len(icons().pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 2.0}, r"weight\s.*an epoch has each pair once; give the other sources less instead"),
        ({"weight": 0.0}, r"weight\s.*greater than 0"),
        ({"max_pairs": 0}, r"max_pairs"),
        ({"name": "a/b"}, r"name\s.*match pattern"),
        ({"name": "two"}, "the name 'two' stands there more than once"),
        ({"source": ICONPARK | {"path": str(CACHE / ".." / "emoji")}}, "one lies in .*, which is not in the mixture's"),
        ({"source": {"source": "mixture", "path": str(CACHE), "sources": []}}, "'mixture'.*does not match any"),
    ],
)
def test_what_can_not_be_mixed_is_refused_with_the_reason(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        mixture(CACHE, mixed("one", ICONPARK) | change, mixed("two", ICONPARK))
