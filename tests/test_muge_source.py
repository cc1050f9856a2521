"""A data set in the reference's format becomes pairs; bad lines are set aside with file, line and reason."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from clip_core.config.sources import MugeSource
from clip_core.data.pairs import SPLITS, read_images, read_pairs, read_rejected
from clip_core.data.sources import Harvest
from clip_core.data.sources.muge_lines import LONGEST_LINE
from clip_core.recipe import apply_recipes
from tests.conftest import ROOT
from tests.harvested import harvested
from tests.small_raw import drawing, encoded
from tests.stage_calls import call

PICTURES = [encoded(drawing(i)) for i in range(8)]


@pytest.fixture(autouse=True)
def _beside_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is kept in the folder that the process runs in."""
    monkeypatch.chdir(tmp_path)


def text_line(text_id: int | str, text: str, image_ids: list) -> str:
    return json.dumps({"text_id": text_id, "text": text, "image_ids": image_ids}, ensure_ascii=False) + "\n"


def picture_line(image_id: int | str, picture: bytes) -> str:
    return f"{image_id}\t{base64.b64encode(picture).decode()}\n"


def write_split(folder: Path, name: str, texts: str, pictures: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_texts.jsonl").write_text(texts, encoding="utf-8")
    (folder / f"{name}_imgs.tsv").write_text(pictures, encoding="utf-8")


def data_set(folder: Path) -> MugeSource:
    """Four pictures and three texts in train, two of each in valid and in test; ids are numbers that come again."""
    train = "".join(picture_line(i, PICTURES[i]) for i in (3, 1, 0, 2))  # in no order
    texts = text_line(7, "红色的包", [0, 1]) + text_line(8, "一双鞋", [2]) + text_line(9, "雨伞", [3])
    write_split(folder, "train", texts, train)
    for name, first in (("valid", 4), ("test", 6)):
        pictures = "".join(picture_line(i, PICTURES[first + i]) for i in range(2))
        write_split(folder, name, text_line(7, "帽子", [0]) + text_line(8, "手表", [1]), pictures)
    return MugeSource(
        source="muge",
        path=str(folder),
        licence="CC0-1.0",
        train="train",
        valid="valid",
        test="test",
        valid_percent=40,
    )


def found_in(data: MugeSource) -> Harvest:
    """All that the source gives; train first, as parts come in the order of their names."""
    found = harvested(data)
    return replace(
        found, pairs=found.pairs.sort_values("split", key=lambda split: split.map(SPLITS.index), kind="stable")
    )


def test_a_text_becomes_a_pair_with_each_of_its_pictures(tmp_path: Path) -> None:
    found = found_in(data_set(tmp_path))
    train = found.pairs[found.pairs["split"] == "train"]
    assert train[["text_id", "image_id", "caption"]].to_numpy().tolist() == [
        ["train/7", "train/0", "红色的包"],
        ["train/7", "train/1", "红色的包"],
        ["train/8", "train/2", "一双鞋"],
        ["train/9", "train/3", "雨伞"],
    ]
    assert found.pairs["pair_id"].is_unique
    assert set(found.pairs["language"]) == {"zh"} and set(found.pairs["licence"]) == {"CC0-1.0"}
    images = list(found.images)
    assert [image_id for image_id, _ in images] == sorted({*found.pairs["image_id"]})
    named = {"train/0": 0, "train/3": 3, "valid/0": 4, "test/1": 7}
    assert {name: dict(images)[name] for name in named} == {name: PICTURES[i] for name, i in named.items()}


def test_urlsafe_base64_without_padding_and_text_ids_are_read_too(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    picture = next(one for i in range(99) if {*b"+/"} <= {*base64.b64encode(one := encoded(drawing(i)))})
    urlsafe = base64.urlsafe_b64encode(picture).decode().rstrip("=")
    assert "-" in urlsafe and "_" in urlsafe
    write_split(tmp_path, "train", text_line("t-1", "猫", ["a/b"]), f"a/b\t{urlsafe}\r\n")
    found = found_in(data)
    assert found.pairs["pair_id"].iloc[0] == "train/t-1/a/b"
    assert dict(found.images)["train/a/b"] == picture


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (text_line(1, "猫", []), "no_image_ids"),
        (text_line(1, "猫", [99]), "image_missing"),
        (text_line(1, " ", [1]), "text_blank"),
        (text_line(7, "又是七号", [1]), "text_id_repeated"),
        (text_line(1, "猫", [None]), "image_ids_are_no_ids"),
        (text_line(1, "猫", [True]), "image_ids_are_no_ids"),
        ('{"text_id": 1, "image_ids": [1]}\n', "no_text_id_text_and_image_ids"),
        ('{"text_id": 1, "text": "猫"}\n', "no_text_id_text_and_image_ids"),
        ("[1]\n", "no_text_id_text_and_image_ids"),
        ("{'text_id': 1}\n", "not_json"),
    ],
)
def test_a_bad_text_is_set_aside_with_file_and_line(line: str, reason: str, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    file = tmp_path / "train_texts.jsonl"
    file.write_text(text_line(7, "红色的包", [0]) + "\n" + line + text_line(8, "一双鞋", [2]), encoding="utf-8")
    found = found_in(data)
    assert found.rejected[["reason", "file", "line"]].to_numpy().tolist() == [[reason, str(file), 3]]
    assert found.pairs["caption"].tolist()[:2] == ["红色的包", "一双鞋"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (picture_line(0, PICTURES[5]), "image_id_repeated"),
        ("5\tnot base64!\n", "not_base64"),
        ("5\n", "no_id_and_base64"),
        ("\tAAAA\n", "no_id_and_base64"),
    ],
)
def test_a_bad_picture_is_set_aside_with_file_and_line(line: str, reason: str, tmp_path: Path) -> None:
    data = data_set(tmp_path)
    file = tmp_path / "train_imgs.tsv"
    file.write_text(file.read_text() + line)
    found = found_in(data)
    assert found.rejected[["reason", "file", "line"]].to_numpy().tolist() == [[reason, str(file), 5]]
    assert dict(found.images)["train/0"] == PICTURES[0]  # the first of that id


def test_one_picture_of_a_text_may_be_missing_and_others_stay(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    write_split(tmp_path, "train", text_line(1, "猫", [2, 99, 0, 2]), "".join(map(picture_line, range(4), PICTURES)))
    found = found_in(data)
    assert found.pairs["image_id"].tolist()[:2] == ["train/2", "train/0"]
    assert found.rejected[["reason", "image_id"]].to_numpy().tolist() == [["image_missing", "train/99"]]
    assert found.more == {
        "training_pictures_that_no_text_names": 2,
        "pictures_without_text": 0,
        "texts_without_picture": 0,
    }


@pytest.mark.parametrize("split", ["valid", "test"])
def test_pictures_that_no_text_names_and_texts_without_a_picture_stay_in_valid_and_test(
    split: str, tmp_path: Path
) -> None:
    """The reference searches all of them; before, they were dropped, and a line of `train` still is."""
    data = data_set(tmp_path)
    lines = text_line(1, "猫", [0]) + text_line(2, "狗", []) + text_line(3, "鸟", [98, 99]) + text_line(4, "猫", [0])
    write_split(tmp_path, split, lines, "".join(map(picture_line, range(3), PICTURES)))
    write_split(tmp_path, "train", lines, "".join(map(picture_line, range(3), PICTURES)))
    found = found_in(data)
    columns = ["pair_id", "image_id", "text_id", "caption", "language", "caption_kind"]
    mine = found.pairs[found.pairs["split"] == split]
    assert mine[columns].fillna("null").to_numpy().tolist() == [
        [f"{split}/1/0", f"{split}/0", f"{split}/1", "猫", "zh", "caption"],
        [f"{split}/4/0", f"{split}/0", f"{split}/4", "猫", "zh", "caption"],
        [f"{split}//1", f"{split}/1", *["null"] * 4],
        [f"{split}//2", f"{split}/2", *["null"] * 4],
        [f"{split}/2/", "null", f"{split}/2", "狗", "zh", "caption"],
        [f"{split}/3/", "null", f"{split}/3", "鸟", "zh", "caption"],
    ]
    assert [name for name, _ in found.images if name.startswith(split)] == [f"{split}/{i}" for i in range(3)]
    assert found.pairs[found.pairs["split"] == "train"]["pair_id"].tolist() == ["train/1/0", "train/4/0"]
    in_train, here = (
        found.rejected[found.rejected["file"] == str(tmp_path / f"{name}_texts.jsonl")]["reason"].tolist()
        for name in ("train", split)
    )
    assert (in_train, here) == (["no_image_ids", "image_missing", "image_missing"], ["image_missing"] * 2)
    assert found.more == {
        "training_pictures_that_no_text_names": 2,
        "pictures_without_text": 2,
        "texts_without_picture": 2,
    }


def test_a_picture_of_train_that_no_text_names_is_a_candidate_where_valid_is_taken_from_train(tmp_path: Path) -> None:
    data = data_set(tmp_path).model_copy(update={"valid": None, "valid_percent": 40})
    write_split(tmp_path, "train", text_line(1, "猫", [0, 1, 2, 3]), "".join(map(picture_line, range(8), PICTURES)))
    pairs = found_in(data).pairs
    alone = pairs[pairs["text_id"].isna()]
    assert len(alone) and set(alone["split"]) == {"valid"}


def test_a_test_without_answers_is_refused_with_the_way_out_and_valid_can_be_taken_from_train(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    write_split(tmp_path, "test", text_line(1, "猫", []) + text_line(2, "狗", []), picture_line(0, PICTURES[6]))
    with pytest.raises(ValueError, match=r"none of its 2 texts names a picture.*\(MUGE: `test: valid`"):
        found_in(data)
    lines = [text_line(i, f"第{i}个", [i % 4]) for i in range(30)]
    write_split(tmp_path, "train", "".join(lines), "".join(map(picture_line, range(4), PICTURES)))
    pairs = found_in(data.model_copy(update={"valid": None, "test": "valid", "valid_percent": 40})).pairs
    by_name = pairs.groupby(pairs["image_id"].str.partition("/")[0])["split"].unique().map(sorted).to_dict()
    assert by_name == {"train": ["train", "valid"], "valid": ["test"]}
    assert pairs.groupby("image_id")["split"].nunique().eq(1).all()


def test_an_unusable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_set(tmp_path)
    assert LONGEST_LINE > 2**26
    monkeypatch.setattr("clip_core.data.sources.muge_lines.LONGEST_LINE", 50)
    with pytest.raises(ValueError, match=r"train_imgs\.tsv, line 1: longer than 50 bytes"):
        found_in(data)
    monkeypatch.undo()
    (tmp_path / "train_texts.jsonl").write_bytes("红".encode("gb18030") + b"\n")
    with pytest.raises(ValueError, match=r"train_texts\.jsonl: not one of its 1 lines .* line 1, not_utf8"):
        found_in(data)
    (tmp_path / "valid_imgs.tsv").unlink()
    data_set(tmp_path)
    (tmp_path / "valid_imgs.tsv").unlink()
    with pytest.raises(ValueError, match=r"valid_imgs\.tsv: no such file\. `data\.path` names the folder"):
        found_in(data)
    (tmp_path / "valid_imgs.tsv").mkdir()
    with pytest.raises(ValueError, match=r"valid_imgs\.tsv: can not be read: Is a directory\. `data` in params"):
        found_in(data)


def test_such_a_data_set_is_ingested_and_its_counts_add_up(tmp_path: Path) -> None:
    data = data_set(tmp_path / "mine")
    texts = tmp_path / "mine" / "train_texts.jsonl"
    texts.write_text(texts.read_text() + text_line(10, "没有图", []) + text_line(11, "少一张", [3, 98]) + "oops\n")
    recipe, params_file = tmp_path / "own.yaml", tmp_path / "params.yaml"
    params_file.write_bytes((ROOT / "params.yaml").read_bytes())
    recipe.write_text(json.dumps({"data": data.model_dump()}))
    apply_recipes([recipe], params_file)

    call("ingest", params_file, tmp_path / "raw", tmp_path / "quarantine", tmp_path / "tombstones.txt")

    counts = json.loads((tmp_path / "raw" / "counts.json").read_text())
    assert (counts["read"], counts["kept"], counts["rejected"]) == (12, 9, 3)
    assert counts["by_reason"] == {"image_missing": 1, "no_image_ids": 1, "not_json": 1}
    rejected = read_rejected(tmp_path / "quarantine")
    assert rejected["line"].tolist() == [4, 5, 6]
    pairs = read_pairs(tmp_path / "raw")
    assert (pairs["width"] == 32).all() and set(pairs["split"]) == {"train", "valid", "test"}
    assert [image_id for image_id, _ in read_images(tmp_path / "raw")] == sorted({*pairs["image_id"]})
