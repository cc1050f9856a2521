"""Each rule of curation finds its planted row; valid and test lose nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from clip_core.all_params import load_params
from clip_core.data.curate import RULES, curate, near, near_duplicate_groups
from clip_core.data.pairs import read_pairs
from clip_core.data.profile import profile_images
from tests.conftest import ROOT
from tests.small_raw import CAPTIONS, drawing, encoded, pair_row, small_raw, write_raw
from tests.stage_calls import call

DISTANCE = load_params(ROOT / "params.yaml").curate.near_duplicate_distance
Rows = list[dict]
Images = dict[str, bytes]


def circle(colour: str) -> Image.Image:
    """A disc on white."""
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).ellipse((4, 4, 28, 28), fill=colour)
    return image


def again_exactly(rows: Rows, images: Images) -> None:
    """The first training pair once more, its picture under another name."""
    images["planted"] = images["picture-00"]
    rows.append(pair_row("planted", images["planted"], CAPTIONS[0], "train"))


def again_saved_as_jpeg(rows: Rows, images: Images) -> None:
    """The first training pair once more, its picture saved in another format."""
    images["planted"] = encoded(drawing(0), "JPEG", quality=92, subsampling=0)
    rows.append(pair_row("planted", images["planted"], CAPTIONS[0], "train"))


def from_the_test_split(rows: Rows, images: Images) -> None:
    """A picture of test in train, saved in another format and with another caption."""
    images["planted"] = encoded(drawing(11), "JPEG", quality=92, subsampling=0)
    rows.append(pair_row("planted", images["planted"], "河里的小船", "train"))


PLANTED = {
    "exact_duplicate": again_exactly,
    "near_duplicate": again_saved_as_jpeg,
    "leakage": from_the_test_split,
}


def curated(rows: Rows, images: Images, rules: dict) -> pd.DataFrame:
    fingerprints = profile_images(sorted(images.items()), 10_000)
    return curate(pd.DataFrame(rows), near_duplicate_groups(fingerprints, DISTANCE), rules)


def test_clean_pairs_stay() -> None:
    assert curated(*small_raw(), RULES)["reason"].isna().all()


def test_every_rule_has_a_planted_row() -> None:
    assert set(PLANTED) == set(RULES)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_row_leaves_under_its_rule_and_stays_without_it(name: str) -> None:
    rows, images = small_raw()
    PLANTED[name](rows, images)
    judged = curated(rows, images, RULES)
    assert judged.loc[judged["reason"].notna(), ["image_id", "reason"]].to_numpy().tolist() == [["planted", name]]
    others = {rule: leaves for rule, leaves in RULES.items() if rule != name}
    assert curated(rows, images, others)["reason"].isna().all()


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("plant", [again_exactly, again_saved_as_jpeg])
def test_duplicates_never_leave_valid_or_test(split: str, plant: Callable[[Rows, Images], None]) -> None:
    rows, images = small_raw()
    plant(rows, images)
    rows[0]["split"] = rows[-1]["split"] = split
    assert curated(rows, images, RULES)["reason"].isna().all()


def test_a_red_and_a_blue_circle_are_different_pictures() -> None:
    colours = ("red", "blue", "green", "orange", "purple", "brown", "yellow", "gray")
    rows, images = small_raw()
    for colour in colours:
        images[colour] = encoded(circle(colour))
        rows.append(pair_row(colour, images[colour], "圆", "train", pair_id=colour))
    assert curated(rows, images, RULES)["reason"].isna().all()


def test_concepts_that_are_drawn_alike_keep_the_keyword_they_share() -> None:
    rows, images = small_raw()
    for concept in ("cook", "man cook"):
        images[concept] = encoded(circle("red"))
        rows.append(pair_row(concept, images[concept], "厨师", "train", pair_id=concept, concept_id=concept))
    assert curated(rows, images, RULES)["reason"].isna().all()


def test_a_concept_whose_last_training_picture_leaves_is_no_longer_seen() -> None:
    rows, images = small_raw()
    from_the_test_split(rows, images)
    rows[-1]["concept_id"] = rows[11]["concept_id"] = "boat"
    rows[0]["concept_id"] = rows[10]["concept_id"] = "cat"
    seen = curated(rows, images, RULES).set_index("image_id")["seen"]
    assert not seen["picture-11"]
    assert seen["picture-10"] and seen["picture-09"]  # the second has no concept


def test_a_training_picture_that_looks_like_a_candidate_without_text_leaves() -> None:
    rows, images = small_raw()
    from_the_test_split(rows, images)
    rows[11] |= dict.fromkeys(("text_id", "caption", "language", "caption_kind"))
    no_picture = {"image_id": None, "image_sha256": None, "width": 0, "height": 0, "num_bytes": 0}
    rows.append(pair_row("", b"", "没有图", "test") | no_picture)
    judged = curated(rows, images, RULES)
    assert judged.loc[judged["reason"].notna(), ["image_id", "reason"]].to_numpy().tolist() == [["planted", "leakage"]]
    assert judged["seen"].all()


@pytest.mark.parametrize("distance", [0, 1, 3])
def test_near_hashes_are_those_that_a_look_at_every_pair_finds(distance: int) -> None:
    random = np.random.default_rng(7)
    hashes = random.integers(0, 2**63, 40, dtype=np.uint64).repeat(4)
    hashes[::3] ^= np.uint64(1) << random.integers(0, 64, len(hashes[::3]), dtype=np.uint64)
    hashes[1::5] ^= np.uint64(1) << random.integers(0, 64, len(hashes[1::5]), dtype=np.uint64)
    found = {frozenset((int(one), int(other))) for one, others in near(hashes, distance) for other in others}
    expected = {
        frozenset((one, other))
        for one in range(len(hashes))
        for other in range(one)
        if int(hashes[one] ^ hashes[other]).bit_count() <= distance
    }
    assert found == expected


def test_the_stage_counts_what_it_reads_keeps_and_removes(tmp_path: Path) -> None:
    rows, images = small_raw()
    for i, plant in enumerate(PLANTED.values()):
        plant(rows, images)
        images[f"planted-{i}"] = images.pop("planted")
        rows[-1] |= {"image_id": f"planted-{i}", "pair_id": f"planted-{i}"}
    raw = write_raw(rows, images, tmp_path / "raw")
    folders = {name: tmp_path / name for name in ("valid", "rejected", "page", "curated", "removed")}
    params = ROOT / "params.yaml"
    call("validate", params, raw, folders["valid"], folders["rejected"], folders["page"])
    call("curate", params, folders["valid"], folders["curated"], folders["removed"])
    counts = json.loads((folders["curated"] / "counts.json").read_text())
    assert (counts["read"], counts["kept"], counts["rejected"]) == (15, 12, 3)
    assert counts["rules"] == {"exact_duplicate": 1, "near_duplicate": 1, "leakage": 1}
    removed = pd.read_parquet(folders["removed"] / "rejected.parquet")
    assert removed["line"].tolist() == [13, 14, 15]
    assert read_pairs(folders["curated"])["seen"].all()
