"""Each rule of the suite finds its planted fault; a bad batch stops and leaves its page."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from clip_core.data.expectations import QUALITY, findings_of, rules_of
from clip_core.data.pairs import COLUMNS, read_pairs, read_rejected
from clip_core.data.profile import profile_images
from clip_core.data.profile_table import profile_pairs
from tests.conftest import ROOT
from tests.judged import MAX_PIXELS, SMALL, judged, judged_alone
from tests.small_raw import drawing, encoded, pair_row, small_raw, write_raw
from tests.stage_calls import call

RULES = rules_of(SMALL)
Rows = list[dict]
Images = dict[str, bytes]


def with_picture(image: bytes) -> Callable[[Rows, Images], None]:
    """Plants a pair whose picture is `image`."""

    def plant(rows: Rows, images: Images) -> None:
        images["planted"] = image
        rows.append(pair_row("planted", image, "坏图", "train"))

    return plant


def with_values(**values: object) -> Callable[[Rows, Images], None]:
    """Plants a pair with a good picture of its own and some bad values."""

    def plant(rows: Rows, images: Images) -> None:
        images["planted"] = encoded(drawing(99))
        rows.append(pair_row("planted", images["planted"], "好图", "train") | values)

    return plant


def without_a_pair(rows: Rows, images: Images) -> None:
    images["planted"] = encoded(drawing(99))


def without_a_picture(rows: Rows, images: Images) -> None:
    rows.append(pair_row("planted", b"", "没有图", "train"))


PLANTED = {
    "picture_has_pair": without_a_pair,
    "pair_has_picture": without_a_picture,
    "picture_unchanged": with_values(image_sha256="0" * 64),
    "picture_decodes": with_picture(encoded(drawing(99, 60, 60), "JPEG")[:-300]),
    "picture_side": with_picture(encoded(drawing(99, 15, 32))),
    "picture_pixels": with_picture(encoded(drawing(99, 80, 80))),
    "picture_bytes": with_picture(encoded(drawing(99)) + bytes(4000)),
    "picture_aspect": with_picture(encoded(drawing(99, 16, 65))),
    "picture_is_one": with_values(),  # of an id that an earlier shard has, too
    "pair_is_new": with_values(pair_id="picture-00/一只猫"),
    "ids_given": with_values(text_id=""),
    "caption_given": with_values(caption=" \u3000"),
    "caption_length": with_values(caption="长" * 201),
    "caption_readable": with_values(caption="ͼ\ufffd片"),
    "language_known": with_values(language="fr"),
    "caption_kind_known": with_values(caption_kind="title"),
    "split_known": with_values(split="dev"),
    "licence_given": with_values(licence=""),
}
ELSEWHERE = {"picture_is_one": {"picture_is_one": [12]}}


def test_clean_pairs_pass_every_rule() -> None:
    verdict = judged(*small_raw())
    assert verdict.rejected.empty and len(verdict.kept) == 12 and len(verdict.facts) == 12
    assert "broken" not in verdict.aggregate.counts or not verdict.aggregate.counts["broken"]
    assert not judged_alone(verdict).refusals


def test_every_rule_about_rows_has_a_planted_fault() -> None:
    assert set(PLANTED) == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_under_its_rule_and_by_no_other(name: str) -> None:
    rows, images = small_raw()
    PLANTED[name](rows, images)
    verdict = judged(rows, images, ELSEWHERE.get(name))
    assert verdict.rejected["reason"].tolist() == [name]
    assert verdict.rejected["image_id"].tolist() == ["planted"]
    assert verdict.rejected["line"].tolist() == [13] or name == "picture_has_pair"
    assert verdict.aggregate.counts["broken"] == {name: 1}
    assert len(verdict.kept) == 12
    pictures = profile_images(sorted(images.items()), MAX_PIXELS)
    profile = profile_pairs(pd.DataFrame(rows), pictures, ELSEWHERE.get(name))
    others = findings_of(profile, [rule for rule in RULES if rule.name != name])
    assert all(finding.passed for finding in others)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("name", PLANTED)
def test_in_valid_and_test_a_row_that_breaks_a_rule_about_quality_stays_and_is_counted(name: str, split: str) -> None:
    """Before, it left the benchmark, which was an easier one then; what can not be used at all still leaves."""
    rows, images = small_raw()
    PLANTED[name](rows, images)
    if len(rows) > 12 and name != "split_known":
        rows[-1]["split"] = split
    verdict = judged(rows, images, ELSEWHERE.get(name))
    if name in QUALITY:
        assert verdict.rejected.empty and verdict.aggregate.stay == {split: {name: 1}}
        assert verdict.aggregate.counts["broken"] == {name: 1}
    else:
        assert verdict.rejected["reason"].tolist() == [name] and verdict.aggregate.stay == {}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_picture_without_text_and_a_text_without_picture_pass_in_valid_and_test_alone(split: str) -> None:
    rows, images = small_raw()
    images["alone"] = encoded(drawing(99))
    no_text = dict.fromkeys(("text_id", "caption", "language", "caption_kind"))
    rows.append(pair_row("alone", images["alone"], "", split) | no_text)
    no_picture = {"image_id": None, "image_sha256": None, "width": 0, "height": 0, "num_bytes": 0}
    rows.append(pair_row("", b"", "没有图", split) | no_picture)
    verdict = judged(rows, images)
    if split == "train":
        assert verdict.rejected["reason"].tolist() == ["ids_given", "pair_has_picture"]
    else:
        assert verdict.rejected.empty and not verdict.aggregate.counts["broken"]
        assert sum(verdict.aggregate.histograms["caption_length"]) == 13
        assert sum(verdict.aggregate.histograms["side"]) == 13


def test_what_stays_in_a_benchmark_and_what_it_loses_is_told(tmp_path: Path) -> None:
    rows, images = small_raw()
    rows = [row | {"pair_id": f"{row['pair_id']}/{i}"} for i in range(20) for row in rows]
    images["odd"] = encoded(drawing(99, 16, 65))
    rows += [pair_row("odd", images["odd"], caption, "test") for caption in ("长图", "长" * 201)]
    images["broken"] = encoded(drawing(98, 60, 60), "JPEG")[:-300]
    rows.append(pair_row("broken", images["broken"], "坏图", "test"))
    run_validate(write_raw(rows, images, tmp_path / "raw"), tmp_path)
    counts = json.loads((tmp_path / "valid" / "counts.json").read_text())
    assert (counts["read"], counts["kept"], counts["by_reason"]) == (243, 242, {"picture_decodes": 1})
    assert counts["break_a_rule_and_stay"] == {"test": {"picture_aspect": 1, "caption_length": 1}}
    assert counts["texts_that_left_with_their_pictures"] == 1


def run_validate(raw: Path, project: Path) -> None:
    call("validate", ROOT / "params.yaml", raw, project / "valid", project / "quarantine", project / "page")


def test_too_many_bad_rows_stop_the_stage_but_leave_quarantine_and_page(tmp_path: Path) -> None:
    rows, images = small_raw()
    rows[3]["licence"] = ""  # one of twelve, and params.yaml allows one in a hundred
    with pytest.raises(ValueError, match=r"1 of 12 rows are bad \(8\.3%\), allowed: 1\.0%; 1 of them break licence_gi"):
        run_validate(write_raw(rows, images, tmp_path / "raw"), tmp_path)
    assert not (tmp_path / "valid").exists()
    assert read_rejected(tmp_path / "quarantine")["reason"].tolist() == ["licence_given"]
    summary = json.loads((tmp_path / "page" / "validation.json").read_text())
    assert not summary["passed"]
    assert {rule["name"]: rule["bad_rows"] for rule in summary["rules"]}["licence_given"] == 1
    page = (tmp_path / "page" / "index.html").read_text()
    assert "refused" in page and "下雨天的伞" in page
    assert "data:image/png;base64," in page
    assert "http" not in page  # it loads nothing from outside


def test_one_bad_record_in_two_hundred_is_no_failure_and_what_is_read_is_kept_or_rejected(tmp_path: Path) -> None:
    rows, images = small_raw()
    many = [row | {"pair_id": f"{row['pair_id']}/{i}"} for i in range(17) for row in rows][:200]
    many[5]["caption"] = ""
    run_validate(write_raw(many, images, tmp_path / "raw"), tmp_path)
    counts = json.loads((tmp_path / "valid" / "counts.json").read_text())
    assert counts == {"read": 200, "kept": 199, "rejected": 1, "by_reason": {"caption_given": 1}}
    kept = read_pairs(tmp_path / "valid")
    assert len(kept) == 199 and set(kept.columns) == set(COLUMNS)


def test_data_of_which_everything_is_bad_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    rows, images = small_raw()
    broken = dict.fromkeys(images, b"no picture")
    rows = [pair_row(row["image_id"], b"no picture", row["caption"], row["split"]) for row in rows]
    with pytest.raises(
        ValueError, match=r"every one of 12 rows is bad; 12 of them break picture_decodes \(the picture"
    ):
        run_validate(write_raw(rows, broken, tmp_path / "raw"), tmp_path)
    assert not (tmp_path / "valid").exists()
