"""The reference's files are read in parts, whatever splits are there; many parts give what one gives."""

import json
from pathlib import Path

import pandas as pd
import pytest

from clip_core.config.sources import MugeSource
from clip_core.data.sources import Part, harvest, muge_index, parts_of
from clip_core.errors import UserError
from tests.harvested import harvested
from tests.test_muge_source import PICTURES, picture_line, text_line, write_split

NULL = dict.fromkeys(("licence", "train", "valid", "test", "valid_percent"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the data; the process runs beside it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def source(folder: Path, **changed: object) -> MugeSource:
    return MugeSource.model_validate({"source": "muge", "path": str(folder), **NULL, **changed})


def pictures(*keys: int) -> str:
    return "".join(picture_line(key, PICTURES[key % 8]) for key in keys)


def write_many(folder: Path, name: str, num: int = 200) -> None:
    write_split(folder, name, "".join(text_line(i, f"第{i}个", [i]) for i in range(num)), pictures(*range(num)))


def splits_of(data: MugeSource) -> dict[str, list[str]]:
    """The splits that the files of each name go to."""
    pairs = harvested(data).pairs
    names = pairs["pair_id"].str.partition("/")[0]
    return {name: sorted(set(splits)) for name, splits in pairs["split"].groupby(names)}


def test_the_path_is_all_that_must_be_known_and_what_has_no_files_is_drawn_from_train(folder: Path) -> None:
    write_many(folder, "train")
    found = harvested(source(folder))
    assert found.pairs["split"].value_counts()["train"] > 150
    assert set(found.pairs["split"]) == {"train", "valid", "test"} and set(found.pairs["licence"]) == {"unknown"}
    assert splits_of(source(folder, valid=None, valid_percent=40)) == {"train": ["test", "train", "valid"]}
    write_many(folder, "valid", 3)
    assert splits_of(source(folder)) == {"train": ["train", "valid"], "valid": ["test"]}
    assert splits_of(source(folder, valid="valid")) == {"train": ["test", "train"], "valid": ["valid"]}
    write_many(folder, "test", 3)
    assert splits_of(source(folder)) == {"test": ["test"], "train": ["train", "valid"]}
    assert splits_of(source(folder, valid="valid")) == {"test": ["test"], "train": ["train"], "valid": ["valid"]}
    (folder / "test_texts.jsonl").write_text(text_line(1, "没有答案", []))
    assert splits_of(source(folder)) == {"train": ["train", "valid"], "valid": ["test"]}
    with pytest.raises(UserError, match=r"test_texts\.jsonl: none of its 1 texts names a picture.*`data\.test`"):
        parts_of(source(folder, test="test"))


def test_files_that_are_not_there_are_named_with_the_way_out(folder: Path) -> None:
    folder.mkdir()
    with pytest.raises(
        UserError, match=r"train_imgs\.tsv: no such file\. `data\.path` names the folder; `data\.train`"
    ):
        parts_of(source(folder))
    write_many(folder, "train", 3)
    with pytest.raises(UserError, match=r"dev_imgs\.tsv: no such file"):
        parts_of(source(folder, valid="dev"))
    (folder / "test_texts.jsonl").write_text(text_line(1, "猫", [1]))
    with pytest.raises(UserError, match=r"test_imgs\.tsv: no such file"):
        parts_of(source(folder))
    for change in ({"valid": "train"}, {"train": "../train"}):
        with pytest.raises(ValueError, match=r"must name different files|inside it"):
            source(folder, **change)


def records_of(rows: pd.DataFrame) -> list[dict]:
    rows = rows.astype(object)
    return rows.where(rows.notna(), None).to_dict("records")


def found_of(data: MugeSource, parts: list[Part]) -> tuple[list, list, list, dict]:
    """All rows, refused rows, pictures and counts of the parts, in an order that does not depend on them."""
    found = [harvest(data, part) for part in parts]
    rows, refused = (
        sorted(json.dumps(row, ensure_ascii=False) for one in found for row in records_of(getattr(one, name)))
        for name in ("pairs", "rejected")
    )
    images = [list(one.images) for one in found]
    assert all([key for key, _ in some] == sorted({key for key, _ in some}) for some in images)
    for one, some in zip(found, images, strict=True):
        assert {key for key, _ in some} == set(one.pairs["image_id"].dropna())
    counts = {name: sum(one.more[name] for one in found) for name in found[0].more}
    return rows, refused, sorted(picture for some in images for picture in some), counts


def write_odd(folder: Path) -> MugeSource:
    """Train and test with texts of no, some and several pictures, pictures without text, repeated and bad lines."""
    lines = text_line(1, "猫", [3, 0, 7]) + text_line(2, "狗", []) + text_line(3, "鸟", [98, 5]) + "oops\n"
    lines += text_line(4, "猫", [0]) + text_line(1, "又一", [1]) + text_line(5, "鱼", [97]) + text_line(6, "马", [6, 2])
    rows = pictures(4, 3, 2) + "9\tnot base64!\n" + pictures(1, 0, 7, 5, 6) + picture_line(3, PICTURES[0]) + "\n"
    for name in ("train", "test"):
        write_split(folder, name, lines, rows)
    return source(folder, valid_percent=40)


@pytest.mark.parametrize(("limit", "value"), [("PART_BYTES", 300), ("PART_PICTURES", 2), ("PART_PAIRS", 1)])
def test_many_parts_give_the_rows_of_one(limit: str, value: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_odd(folder)
    whole = parts_of(data)
    assert [part.name for part in whole] == ["test-00000", "test-texts-00000", "train-00000", "train-texts-00000"]
    expected = found_of(data, whole)
    monkeypatch.setattr(muge_index, limit, value)
    parts = parts_of(data)
    assert len(parts) > 8 and len({part.name for part in parts}) == len(parts)
    assert found_of(data, parts) == expected


def test_each_line_and_each_picture_that_a_line_names_is_kept_or_refused_once(folder: Path) -> None:
    rows, refused, _, counts = found_of(write_odd(folder), parts_of(write_odd(folder)))
    by_reason = [(row["reason"], Path(row["file"]).name, row["line"]) for row in map(json.loads, refused)]
    of_texts = [("text_id_repeated", 6), ("not_json", 4), ("image_missing", 3), ("image_missing", 7)]
    expected = [(reason, f"{name}_texts.jsonl", line) for name in ("train", "test") for reason, line in of_texts]
    expected += [
        (reason, f"{name}_imgs.tsv", line)
        for name in ("train", "test")
        for reason, line in (("not_base64", 4), ("image_id_repeated", 10))
    ]
    assert sorted(by_reason) == sorted([*expected, ("no_image_ids", "train_texts.jsonl", 2)])
    alone = [row for row in map(json.loads, rows) if not (row["text_id"] and row["image_id"])]
    num_drawn = sum(row["split"] == "valid" for row in alone)
    assert (len(rows), len(alone)) == (2 * 7 + len(alone), 4 + num_drawn)
    assert counts == {
        "training_pictures_that_no_text_names": 2 - num_drawn,
        "pictures_without_text": 2 + num_drawn,
        "texts_without_picture": 2,
    }


def test_a_changed_line_is_work_for_its_part_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muge_index, "PART_PICTURES", 10)
    write_many(folder, "train", 100)
    data = source(folder)
    before = parts_of(data)
    texts = (folder / "train_texts.jsonl").read_text(encoding="utf-8")
    (folder / "train_texts.jsonl").write_text(texts.replace("第55个", "第五十五个"), encoding="utf-8")
    assert [old.name for old, new in zip(before, parts_of(data), strict=True) if old != new] == ["train-00005"]
    (folder / "train_texts.jsonl").write_text(texts, encoding="utf-8")
    with (folder / "train_imgs.tsv").open("a") as file:
        file.write(pictures(100))
    assert parts_of(data)[:-1] == before and len(before) == 10
    rows = (folder / "train_imgs.tsv").read_text()
    (folder / "train_imgs.tsv").write_text("\n" + rows)  # all others stand elsewhere
    assert parts_of(data)[:-1] == before
    (folder / "train_imgs.tsv").write_text(rows.replace(pictures(33), picture_line(33, PICTURES[5])))
    assert [old.name for old, new in zip(before, parts_of(data), strict=False) if old != new] == ["train-00003"]


def test_a_file_that_changes_while_it_is_read_is_named(folder: Path) -> None:
    write_many(folder, "train", 3)
    data = source(folder)
    found = harvest(data, parts_of(data)[0])
    content = (folder / "train_imgs.tsv").read_bytes()
    (folder / "train_imgs.tsv").write_bytes(content[:300] + b"A" * (len(content) - 300))
    with pytest.raises(UserError, match=r"train_imgs\.tsv: the file changed while it was read"):
        list(found.images)
