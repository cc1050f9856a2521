"""Each rule of curation finds its planted row; valid and test lose nothing; the page shows what left."""

import io
import json
import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from clip_core.all_params import check_files, load_params
from clip_core.config.curation import Curate
from clip_core.data import scores
from clip_core.data.curate import Curated, curate
from clip_core.data.curation_page import MEANINGS, write_page
from clip_core.data.pairs import COLUMNS, CURATED, ORIGIN, read_pairs, read_rejected, write_images, write_pairs
from clip_core.data.profile import difference_hash, thumbnail
from clip_core.data.rules import QUERIES
from clip_core.errors import UserError
from clip_core.image import read_image
from clip_core.recipe import apply_recipes
from tests.conftest import ROOT
from tests.small_raw import CAPTIONS, drawing, encoded, pair_row, small_raw, write_raw
from tests.stage_calls import call

Rows = list[dict]
Images = dict[str, bytes]
FIRST = "picture-00"


def circle(colour: str) -> Image.Image:
    """A disc on white."""
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).ellipse((4, 4, 28, 28), fill=colour)
    return image


def plant(rows: Rows, images: Images, image: bytes, caption: str = "河里的小船", **changed: object) -> None:
    """One more training pair."""
    images["planted"] = image
    rows.append(pair_row("planted", image, caption, "train", **changed))


def again_exactly(rows: Rows, images: Images) -> None:
    """The first training pair once more, its picture under another name."""
    plant(rows, images, images[FIRST], CAPTIONS[0])


def again_saved_as_jpeg(rows: Rows, images: Images) -> None:
    """The first training pair once more, its picture saved in another format."""
    plant(rows, images, encoded(drawing(0), "JPEG", quality=92, subsampling=0), CAPTIONS[0])


def from_the_test_split(rows: Rows, images: Images) -> None:
    """A picture of test in train, saved in another format and with another caption."""
    plant(rows, images, encoded(drawing(11), "JPEG", quality=92, subsampling=0))


def another(caption: str, **changed: object) -> Callable[[Rows, Images], None]:
    """A picture like no other, with this caption."""
    return lambda rows, images: plant(rows, images, encoded(drawing(50)), caption, **changed)


def for_the_caption(rows: Rows, images: Images) -> None:
    """One caption for another picture; the hash of its id comes behind that of the first pair's."""
    plant(rows, images, encoded(drawing(50)), CAPTIONS[0], pair_id="3")


def for_the_picture(rows: Rows, _images: Images) -> None:
    """Another caption for the first picture; the hash of its id comes behind that of the first pair's."""
    rows.append(rows[0] | {"caption": "河里的小船", "pair_id": "3"})


PLANTED: dict[str, tuple[object, Callable[[Rows, Images], None]]] = {  # rule -> its value, and what it takes
    "language": (["zh"], another("a cat", language="en")),
    "caption_length": ({"least": 1, "most": 7}, another("太长的一个标题啊")),
    "aspect": (3.0, another("很宽", width=97, height=32)),
    "pattern": ("default", another("新款连衣裙包邮")),
    "blacklist": ("words.txt", another("有坏话(的")),
    "exact_duplicate": (True, again_exactly),
    "near_duplicate": (True, again_saved_as_jpeg),
    "leakage": (True, from_the_test_split),
    "score": ({"weights": "model", "least": 0.5}, another("不像")),
    "pairs_per_caption": (1, for_the_caption),
    "pairs_per_picture": (1, for_the_picture),
}
ALL = {name: value for name, (value, _) in PLANTED.items()}
OFF = {name: False if value is True else None for name, value in ALL.items()}
AS_COMMITTED = load_params(ROOT / "params.yaml").curate


@dataclass(frozen=True)
class Outcome:
    told: Curated
    kept: pd.DataFrame
    rejected: pd.DataFrame

    def left(self) -> list[list[str]]:
        return self.rejected[["image_id", "reason"]].to_numpy().tolist()


@pytest.fixture
def curated(tmp_path: Path) -> Callable[..., Outcome]:
    """Curation of a few pairs in a shard, or several, with some rules."""
    (tmp_path / "words.txt").write_text("\ufeff坏话(\n\n另一个\n", encoding="utf-8")
    for name in ("raw", "valid", "kept", "rejected", "page"):
        (tmp_path / name).mkdir()

    def run(rows: Rows, images: Images, rules: dict, shard_of: Callable[[dict], str] = lambda _: "only") -> Outcome:
        valid, raw = tmp_path / "valid", tmp_path / "raw"
        for shard, of_shard in pd.DataFrame(rows).groupby([shard_of(row) for row in rows]):
            write_pairs(of_shard, valid / f"pairs-{shard}.parquet")
            mine = {name: image for name, image in sorted(images.items()) if name in set(of_shard["image_id"])}
            write_images(mine.items(), raw / f"images-{shard}.parquet")
            write_facts(mine, valid / f"facts-{shard}.parquet")
        section = {"path": str(tmp_path), "near_duplicate_distance": 4, "rules": rules}
        params = Curate.model_validate_json(json.dumps(section))
        told = curate(params, valid, tmp_path / "kept", tmp_path / "rejected", scores.scores_by(Model(), raw))
        write_page(told, raw, tmp_path / "page")
        return Outcome(told, read_pairs(tmp_path / "kept"), read_rejected(tmp_path / "rejected"))

    return run


def write_facts(images: Images, file: Path) -> None:
    decoded = [read_image(image) for image in images.values()]
    hashes = pa.array([difference_hash(image) for image in decoded], pa.uint64())
    thumbnails = pa.array([thumbnail(image) for image in decoded], pa.binary())
    facts = {"image_id": pa.array(list(images), pa.string()), "difference_hash": hashes, "thumbnail": thumbnails}
    pq.write_table(pa.table(facts), file)


class Model:
    """Finds that every caption fits every picture, but for one."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[0.0, 1.0] if text == "不像" else [1.0, 0.0] for text in texts], dtype=np.float32)

    def encode_images(self, images: Sequence[bytes]) -> np.ndarray:
        return np.array([[0.8, 0.4]] * len(images), dtype=np.float32)


def test_every_rule_has_a_planted_row_a_query_and_a_meaning() -> None:
    assert list(PLANTED) == list(QUERIES) == list(MEANINGS) == list(type(AS_COMMITTED.rules).model_fields)


def test_clean_pairs_stay_under_all_rules(curated: Callable[..., Outcome]) -> None:
    outcome = curated(*small_raw(), ALL)
    assert outcome.left() == []
    given = pd.DataFrame(small_raw()[0]).fillna("nothing").to_dict("records")
    assert outcome.kept[list(COLUMNS)].fillna("nothing").to_dict("records") == given
    assert (outcome.kept["near_duplicate_group"] == outcome.kept["image_id"]).all()


@pytest.mark.parametrize("rule", PLANTED)
@pytest.mark.parametrize("together", [False, True])
def test_a_planted_row_leaves_under_its_rule(rule: str, together: bool, curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    value, planted = PLANTED[rule]
    planted(rows, images)
    rules = ALL if together else OFF | {rule: value}
    outcome = curated(rows, images, rules)
    assert outcome.left() == [[rows[-1]["image_id"], rule]]
    assert outcome.rejected["line"].tolist() == [13]
    assert {name: number for name, number in outcome.told.rules.items() if number} == {rule: 1}


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_row_stays_when_its_rule_is_off(rule: str, curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    PLANTED[rule][1](rows, images)
    rules = ALL | {"pairs_per_caption": None, rule: OFF[rule]}  # a repeated caption is too many of one
    assert curated(rows, images, rules).left() == []


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("rule", PLANTED)
def test_valid_and_test_lose_nothing(rule: str, split: str, curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    value, planted = PLANTED[rule]
    planted(rows, images)
    rows[0]["split"] = rows[-1]["split"] = split
    assert curated(rows, images, OFF | {rule: value}).left() == []


def test_a_row_leaves_under_the_first_rule_that_takes_it(curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    again_exactly(rows, images)
    rows[0]["caption"] = rows[-1]["caption"] = "坏话("
    outcome = curated(rows, images, ALL)
    assert outcome.left() == [[FIRST, "blacklist"], ["planted", "blacklist"]]
    assert outcome.told.rules == {name: 2 * (name == "blacklist") for name in PLANTED}


def test_the_committed_rules_are_duplicates_and_leakage() -> None:
    on = {name for name, value in AS_COMMITTED.rules if value not in (None, False)}
    assert on == {"exact_duplicate", "near_duplicate", "leakage"}


def test_a_red_and_a_blue_circle_are_different_pictures(curated: Callable[..., Outcome]) -> None:
    colours = ("red", "blue", "green", "orange", "purple", "brown", "yellow", "gray")
    rows, images = small_raw()
    for colour in colours:
        images[colour] = encoded(circle(colour))
        rows.append(pair_row(colour, images[colour], "圆", "train", pair_id=colour))
    assert curated(rows, images, OFF | {"near_duplicate": True, "exact_duplicate": True}).left() == []


def test_concepts_that_are_drawn_alike_keep_the_keyword_they_share(curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    for concept in ("cook", "man cook"):
        images[concept] = encoded(circle("red"))
        rows.append(pair_row(concept, images[concept], "厨师", "train", pair_id=concept, concept_id=concept))
    outcome = curated(rows, images, OFF | {"near_duplicate": True, "exact_duplicate": True})
    assert outcome.left() == []
    assert outcome.kept["near_duplicate_group"].tolist()[-2:] == ["cook", "cook"]


def test_slowly_changing_greys_and_a_white_test_picture_do_not_empty_train(curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    for grey in range(0, 255, 3):
        name = f"grey-{grey:03d}"
        images[name] = encoded(Image.new("RGB", (32, 32), (grey, grey, grey)))
        rows.append(pair_row(name, images[name], f"灰{grey}", "train"))
    images["white"] = encoded(Image.new("RGB", (32, 32), "white"))
    rows.append(pair_row("white", images["white"], "白", "test"))
    outcome = curated(rows, images, ALL)
    assert outcome.left() == [["grey-252", "leakage"]]  # and not the 84 others
    groups = outcome.kept.set_index("image_id")["near_duplicate_group"]
    assert (groups["grey-000"], groups["grey-003"], groups["grey-006"]) == ("grey-000", "grey-000", "grey-006")
    assert groups["white"] == "grey-252"  # a group may hold pictures of several splits, and one that left


def test_a_concept_whose_last_training_picture_leaves_is_no_longer_seen(curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    from_the_test_split(rows, images)
    rows[-1]["concept_id"] = rows[11]["concept_id"] = "boat"
    rows[0]["concept_id"] = rows[10]["concept_id"] = "cat"
    seen = curated(rows, images, ALL).kept.set_index("image_id")["seen"]
    assert not seen["picture-11"]
    assert seen["picture-10"] and seen["picture-09"]  # the second has no concept


def test_a_training_picture_that_looks_like_a_candidate_without_text_leaves(curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    from_the_test_split(rows, images)
    rows[11] |= dict.fromkeys(("text_id", "caption", "language", "caption_kind"))
    no_picture = {"image_id": None, "image_sha256": None, "width": 0, "height": 0, "num_bytes": 0}
    rows.append(pair_row("", b"", "没有图", "test") | no_picture)
    outcome = curated(rows, images, ALL)
    assert outcome.left() == [["planted", "leakage"]]
    assert outcome.kept["seen"].all()
    assert outcome.kept["near_duplicate_group"].isna().tolist() == [False] * 12 + [True]


def test_rules_see_all_shards_and_each_keeps_its_own_rows(curated: Callable[..., Outcome], tmp_path: Path) -> None:
    def shard_of(row: dict) -> str:
        return "b" if row["image_id"] in ("planted", "picture-03") else "a"

    rows, images = small_raw()
    again_exactly(rows, images)
    outcome = curated(rows, images, ALL, shard_of)
    assert outcome.left() == [["planted", "exact_duplicate"]]
    assert outcome.rejected[["file", "line"]].to_numpy().tolist() == [[str(tmp_path / "valid" / "pairs-b.parquet"), 2]]
    assert outcome.kept["image_id"].tolist()[-1] == "picture-03"
    assert pq.read_schema(tmp_path / "kept" / "pairs-a.parquet").names == [*COLUMNS, *CURATED]
    assert pq.read_schema(tmp_path / "rejected" / "rejected-a.parquet").names == [*ORIGIN, *COLUMNS]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "counts.json",
        "pairs-a.parquet",
        "pairs-b.parquet",
    ]


def test_a_test_picture_in_two_shards_is_one_picture(curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    rows.append(rows[11] | {"pair_id": "again", "caption": "小船", "source": "b"})
    from_the_test_split(rows, images)
    outcome = curated(rows, images, ALL, lambda row: row["source"])
    assert outcome.left() == [["planted", "leakage"]]
    assert len(outcome.kept) == 13


def test_what_valid_and_test_share_is_counted_and_stays(curated: Callable[..., Outcome], tmp_path: Path) -> None:
    rows, images = small_raw()
    from_the_test_split(rows, images)
    rows[-1]["split"] = "valid"
    rows[8]["caption"] = rows[9]["caption"] = rows[10]["caption"] = "山"
    outcome = curated(rows, images, ALL)
    counts = json.loads((tmp_path / "kept" / "counts.json").read_text(encoding="utf-8"))
    assert counts["in_both_valid_and_test"] == outcome.told.overlap == {"pictures": 1, "captions": 1}
    assert (counts["read"], counts["kept"], counts["rejected"]) == (13, 13, 0)


@pytest.mark.parametrize("rule", ["pairs_per_caption", "pairs_per_picture"])
def test_caps_keep_the_same_pairs_in_whatever_order_they_come(rule: str, curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    rows += [rows[0] | {"pair_id": str(i)} for i in range(20)]
    first, again = (set(curated(some, images, OFF | {rule: 3}).kept["pair_id"]) for some in (rows, rows[::-1]))
    assert first == again
    assert len(first) == 11 + 3


@pytest.mark.parametrize(
    ("caption", "leaves"),
    [
        ("加微信号: abc_12345 看更多", True),
        ("咨询电话 400-123-4567", True),
        ("IMG_2034.jpg", True),
        ("高清图片", True),
        ("全场5折起", True),
        ("街边的一家小店", False),
        ("一个人在看图片", False),
        ("折叠的纸飞机", False),
    ],
)
def test_the_committed_patterns_know_boilerplate(caption: str, leaves: bool, curated: Callable[..., Outcome]) -> None:
    rows, images = small_raw()
    another(caption)(rows, images)
    assert len(curated(rows, images, OFF | {"pattern": "default"}).rejected) == leaves


class Table:
    """The score of every picture with every caption is a number of its own."""

    def __init__(self, rows: Rows, images: Images) -> None:
        self.values = np.random.default_rng(3).random((len(rows), len(images)), dtype=np.float32)
        self.captions, self.images = [row["caption"] for row in rows], list(images.values())

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.values[[self.captions.index(text) for text in texts]]

    def encode_images(self, images: Sequence[bytes]) -> np.ndarray:
        assert len(images) <= 5
        return np.eye(len(self.images), dtype=np.float32)[[self.images.index(image) for image in images]]


def test_a_score_is_that_of_the_pair_s_own_picture_and_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "PICTURES_AT_ONCE", 5)
    rows, images = small_raw()
    table = Table(rows, images)
    write_images(images.items(), tmp_path / "images-a.parquet")
    asked = [(4, 4), (1, 7), (11, 1), (4, 2), (1, 4)]  # picture, caption
    pairs = pd.DataFrame([{"image_id": rows[i]["image_id"], "caption": rows[j]["caption"]} for i, j in asked])
    found = scores.scores_by(table, tmp_path)("a", pairs)
    assert found.tolist() == [table.values[j, i] for i, j in asked]


def test_the_page_shows_each_rule_with_pictures_before_and_after(
    curated: Callable[..., Outcome], tmp_path: Path
) -> None:
    rows, images = small_raw()
    again_saved_as_jpeg(rows, images)
    images["<b>"] = images.pop("planted")
    rows[-1] |= {"image_id": "<b>"}
    rows[0]["caption"] = rows[-1]["caption"] = "<script>猫"
    curated(rows, images, OFF | {"near_duplicate": True})
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    cells = "".join(f'<td class="number">{number}</td>' for number in (7, 1, 6))
    assert f"<tr><th>near_duplicate</th>{cells}" in page
    assert page.count(">off<") == len(PLANTED) - 1
    assert "&lt;script&gt;猫" in page and "<script" not in page and "<b>" not in page
    shown = [
        Image.open(io.BytesIO(b64decode(data))) for data in re.findall(r'src="data:image/webp;base64,([^"]+)', page)
    ]
    assert len(shown) == 2  # what left, and what stays
    assert "http" not in page


def test_the_stage_counts_what_it_reads_keeps_and_removes(tmp_path: Path) -> None:
    rows, images = small_raw()
    for i, planted in enumerate((again_exactly, again_saved_as_jpeg, from_the_test_split)):
        planted(rows, images)
        images[f"planted-{i}"] = images.pop("planted")
        rows[-1] |= {"image_id": f"planted-{i}", "pair_id": f"planted-{i}"}
    raw = write_raw(rows, images, tmp_path / "raw")
    folders = {name: tmp_path / name for name in ("valid", "rejected", "checks", "curated", "removed", "page")}
    params = tmp_path / "params.yaml"
    params.write_bytes((ROOT / "params.yaml").read_bytes())
    call("validate", params, raw, *list(folders.values())[:3])
    call("curate", params, folders["valid"], raw, *list(folders.values())[3:])
    counts = json.loads((folders["curated"] / "counts.json").read_text())
    assert (counts["read"], counts["kept"], counts["rejected"]) == (15, 12, 3)
    on = {name: number for name, number in counts["rules"].items() if number is not None}
    assert on == {"exact_duplicate": 1, "near_duplicate": 1, "leakage": 1}
    assert read_rejected(folders["removed"])["line"].tolist() == [13, 14, 15]
    assert read_pairs(folders["curated"])["seen"].all()
    assert (folders["page"] / "index.html").exists()


def test_the_papers_filters_are_an_overlay(tmp_path: Path) -> None:
    params, overlay = tmp_path / "params.yaml", tmp_path / "paper.yaml"
    params.write_bytes((ROOT / "params.yaml").read_bytes())
    overlay.write_text(
        f"curate: {{path: {tmp_path}, rules: {{caption_length: {{least: 5, most: 50}}, blacklist: blacklist.txt,\n"
        "  score: {weights: clip, least: 0.26}}}\n"
    )
    apply_recipes([overlay], params)
    (tmp_path / "clip").mkdir()
    with pytest.raises(UserError, match=r"curate\.rules\.blacklist: .*blacklist\.txt: no such file"):
        check_files(load_params(params))
    (tmp_path / "blacklist.txt").touch()
    check_files(load_params(params))


def broken_file(folder: Path) -> None:
    (folder / "words.txt").write_bytes("坏话".encode("gb18030"))


@pytest.mark.parametrize(
    ("rules", "prepare", "says"),
    [
        ({"blacklist": "none.txt"}, lambda _: None, r"curate\.rules\.blacklist: .*none\.txt: No such file"),
        ({"blacklist": "words.txt"}, broken_file, r"words\.txt: byte 0 is no UTF-8; save it as UTF-8"),
        ({"pattern": ["(?=a)"]}, lambda _: None, r"curate\.rules\.pattern: .*without look-around"),
    ],
)
def test_what_rules_need_and_is_not_there_is_named(
    rules: dict, prepare: Callable[[Path], None], says: str, curated: Callable[..., Outcome], tmp_path: Path
) -> None:
    prepare(tmp_path)
    with pytest.raises(UserError, match=says):
        curated(*small_raw(), OFF | rules)


@pytest.mark.parametrize(
    "wrong",
    [
        {"caption_length": {"least": 9, "most": 8}},
        {"pattern": ["("]},
        {"blacklist": "../words.txt"},
        {"language": []},
        {"score": {"weights": "model", "least": 1.5}},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    section = {"path": "pretrained", "near_duplicate_distance": 4, "rules": OFF | wrong}
    with pytest.raises(ValueError, match=f"rules.{next(iter(wrong))}"):
        Curate.model_validate_json(json.dumps(section))
