"""A folder that `datasets` saved becomes pairs; bad rows are set aside with their number, bad files named."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from clip_core.config.sources import SavedSource
from clip_core.data.sources import harvest, parts_of, saved
from clip_core.errors import UserError
from tests.damage import refused_or_read
from tests.harvested import harvested
from tests.small_raw import drawing, encoded

PICTURES = [encoded(drawing(i)) for i in range(6)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT, TEXTS = {"dtype": "string", "_type": "Value"}, {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}


def source(folder: Path, **changed: object) -> SavedSource:
    values = dict.fromkeys(("image", "captions", "licence", "valid_percent", "test_percent")) | changed
    return SavedSource.model_validate({"source": "saved", "path": str(folder)} | values)


def images(pictures: Sequence[bytes | None]) -> pa.Array:
    """As `datasets` keeps them: a path that is no use to anybody is beside the bytes."""
    return pa.array([{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(pictures)], IMAGE)


def save(folder: Path, columns: dict[str, pa.Array], rows_in_a_batch: int = 2, num_files: int = 1) -> Path:
    """What `save_to_disk` writes, byte for byte in its layout."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    kinds = {pa.string(): TEXT, pa.list_(pa.string()): TEXTS, IMAGE: {"_type": "Image"}}
    features = {
        field.name: kinds.get(field.type, {"dtype": str(field.type), "_type": "Value"}) for field in table.schema
    }
    names = [f"data-{i:05d}-of-{num_files:05d}.arrow" for i in range(num_files)]
    length = -(-len(table) // num_files)
    for i, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.slice(i * length, length), max_chunksize=rows_in_a_batch)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "e33c9e6384eef0ef", "_split": None}
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": features, "license": ""}))
    return folder


def test_a_row_becomes_a_pair_for_each_of_its_captions(tmp_path: Path) -> None:
    captions = [["一只猫", " 白猫，睡着了 "], ["狗"], ["", None, "月亮"], ["雪山"], ["书"], ["船"]]
    columns = {"image": images(PICTURES), "captions": pa.array(captions), "score": pa.array([0.5] * 6)}
    found = harvested(source(save(tmp_path, columns, num_files=2), licence="CC0-1.0"))
    first, second = "data-00000-of-00002", "data-00001-of-00002"
    ids = [f"{first}/00000000", f"{first}/00000001", f"{first}/00000002", *(f"{second}/0000000{i}" for i in range(3))]
    assert found.pairs[["image_id", "caption"]].to_numpy().tolist() == [
        [ids[0], "一只猫"],
        [ids[0], "白猫，睡着了"],
        [ids[1], "狗"],
        [ids[2], "月亮"],
        [ids[3], "雪山"],
        [ids[4], "书"],
        [ids[5], "船"],
    ]
    assert found.pairs["pair_id"].is_unique and set(found.pairs["licence"]) == {"CC0-1.0"}
    assert list(found.images) == [*zip(ids, PICTURES, strict=True)] and len(found.rejected) == 0


def test_the_data_sets_of_a_dictionary_are_the_splits_and_one_that_is_not_there_is_a_part_of_train(
    tmp_path: Path,
) -> None:
    pictures = [encoded(drawing(i)) for i in range(200)]
    large = {"image": images(pictures), "caption": pa.array([f"第{i}张" for i in range(200)])}
    save(tmp_path / "train", large)
    save(tmp_path / "validation", {name: column.slice(0, 3) for name, column in large.items()})
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    pairs = harvested(source(tmp_path, test_percent=20, valid_percent=20)).pairs
    of = pairs["image_id"].str.split("/").str[0]
    assert of.value_counts().to_dict() == {"train": 200, "validation": 3}
    assert set(pairs["split"][of == "validation"]) == {"valid"}
    assert set(pairs["split"][of == "train"]) == {"train", "test"}


def test_columns_for_split_language_and_licence_are_used(tmp_path: Path) -> None:
    told = {"split": ["test", "val", "tset"], "language": ["en", None, None], "licence": ["MIT", "", None]}
    columns = {"image": images(PICTURES[:3]), "text": pa.array(["a cat", "狗", "猫"])}
    found = harvested(source(save(tmp_path, columns | {name: pa.array(value) for name, value in told.items()})))
    assert found.pairs[["split", "language", "licence"]].to_numpy().tolist() == [
        ["test", "en", "MIT"],
        ["valid", "zh", "unknown"],
    ]
    assert found.rejected[["reason", "line"]].to_numpy().tolist() == [["split_unknown", 3]]


def test_names_of_columns_can_be_mapped_and_several_hold_captions(tmp_path: Path) -> None:
    columns = {"a": images(PICTURES), "b": images(PICTURES[::-1]), "bytes": pa.array(PICTURES)}
    columns |= {"one": pa.array(["一"] * 6), "two": pa.array([["二"], ["三"], [], None, [None], [" "]])}
    save(tmp_path, columns)
    found = harvested(source(tmp_path, image="b", captions=("two", "one")))
    assert found.pairs["caption"].tolist() == ["二", "一", "三", "一", "一", "一", "一", "一"]
    assert [picture for _, picture in found.images] == PICTURES[::-1]
    assert [picture for _, picture in harvested(source(tmp_path, image="bytes", captions=("one",))).images] == PICTURES


def test_a_bad_row_is_set_aside_with_its_number(tmp_path: Path) -> None:
    pictures = [PICTURES[0], None, b"", PICTURES[3], PICTURES[4], PICTURES[5]]
    captions = ["猫", "没有图", "没有图", None, " ", "书"]
    save(tmp_path, {"image": images(pictures), "caption": pa.array(captions), "split": pa.array(["train"] * 6)})
    found = harvested(source(tmp_path))
    assert found.rejected[["reason", "line"]].to_numpy().tolist() == [
        ["no_picture", 2],
        ["no_picture", 3],
        ["no_caption", 4],
        ["no_caption", 5],
    ]
    assert set(found.rejected["file"]) == {str(tmp_path / "data-00000-of-00001.arrow")}
    assert found.pairs["caption"].tolist() == ["猫", "书"] and len(list(found.images)) == 2


def test_in_valid_and_test_a_row_may_lack_its_picture_or_its_captions(tmp_path: Path) -> None:
    columns = {"image": images([PICTURES[0], None]), "caption": pa.array([None, "狗"])}
    save(tmp_path / "test", columns)
    save(tmp_path / "train", {"image": images(PICTURES), "caption": pa.array(["猫"] * 6)})
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    pairs = harvested(source(tmp_path)).pairs.query("split == 'test'")
    assert pairs[["image_id", "caption"]].fillna("").to_numpy().tolist() == [
        ["test/data-00000-of-00001/00000000", ""],
        ["", "狗"],
    ]


GOOD = {"image": images(PICTURES), "caption": pa.array(["猫"] * 6)}


@pytest.mark.parametrize(
    ("columns", "changed", "message"),
    [
        ({"caption": GOOD["caption"]}, {}, r"no column is that of the pictures .*`data.image` in params.yaml"),
        (GOOD | {"other": GOOD["image"]}, {}, r"image, other all could be that of the pictures"),
        ({"image": GOOD["image"]}, {}, r"no column is that of the captions; `data.captions` in params.yaml"),
        ({"image": GOOD["image"], "a": GOOD["caption"], "b": GOOD["caption"]}, {}, r"a, b all could be that of the c"),
        (GOOD, {"image": "caption"}, r"the column 'caption' holds string, no pictures; `data.image` names another"),
        (GOOD, {"image": "none"}, r"no single column 'none'; its columns are image, caption"),
        (GOOD | {"n": pa.array(range(6))}, {"captions": ("n",)}, r"the column 'n' holds int64, no texts"),
        (GOOD, {"captions": ("image",)}, r"the column 'image' holds struct.*, no texts; `data.captions` names others"),
    ],
)
def test_columns_that_are_missing_wrong_or_not_the_only_ones_are_named(
    columns: dict, changed: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow: " + message):
        harvested(source(save(tmp_path, columns), **changed))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", None, r"state\.json: can not be read: No such file"),
        ("state.json", "{", r"state\.json: not JSON"),
        ("state.json", "[" * 100_000, r"state\.json: not JSON"),
        ("state.json", "[]", r"state\.json: an object is wanted, not \[\]"),
        ("state.json", "{}", r"`_data_files` lists none. `data.path` names a folder that `save_to_disk` wrote"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', r"'\.\./x\.arrow' is no file beside it"),
        ("state.json", '{"_data_files": [{"filename": "/etc/passwd"}]}', r"'/etc/passwd' is no file beside it"),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}', r"'gone\.arrow' is no file beside it"),
        ("state.json", '{"_data_files": [7]}', r"7 is no file beside it"),
        ("state.json", '{"_indices_data_files": [{}]}', r"Call `flatten_indices\(\)` and save again"),
        ("dataset_dict.json", '{"splits": ["restval"]}', r"no split of ours is called 'restval'. Rename it"),
        ("dataset_dict.json", '{"splits": ["../train"]}', r"no split of ours is called '\.\./train'"),
        ("dataset_dict.json", '{"splits": "train"}', r"`splits` must be a list of names"),
        ("dataset_info.json", None, r"dataset_info\.json: can not be read"),
        ("dataset_info.json", '{"features": [1]}', r"no column is that of the pictures"),
        ("data-00000-of-00001.arrow", "", r"arrow: no Arrow stream, or a damaged one: .*Save the data set again"),
        ("data-00000-of-00001.arrow", "ARROW1\0\0" * 100, r"arrow: no Arrow stream, or a damaged one"),
    ],
)
def test_a_file_that_can_not_be_used_is_named_with_a_remedy(
    file: str, content: str | None, message: str, tmp_path: Path
) -> None:
    save(tmp_path, GOOD)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        harvested(source(tmp_path))


def test_a_file_that_was_cut_off_is_named_also_where_it_was_cut_between_batches(tmp_path: Path) -> None:
    file = save(tmp_path, GOOD) / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for length in (len(whole) - 8, len(whole) - 9, len(whole) // 2, 9):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"arrow: .*Save the data set again"):
            harvested(source(tmp_path))


@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_compressed_batches_are_refused_before_they_grow(kind: str, tmp_path: Path) -> None:
    file = save(tmp_path, GOOD) / "data-00000-of-00001.arrow"
    table = pa.table(GOOD | {"zeros": pa.array([bytes(2**20)] * 6)})
    options = pa.ipc.IpcWriteOptions(compression=kind)
    with pa.OSFile(str(file), "wb") as opened, pa.ipc.new_stream(opened, table.schema, options=options) as stream:
        stream.write_table(table)
    assert file.stat().st_size < 2**20
    with pytest.raises(UserError, match=r"arrow, byte \d+: compressed or in dictionaries"):
        harvested(source(tmp_path))


def test_a_large_file_is_cut_into_parts_that_hold_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [os.urandom(5_000) for _ in range(60)]
    save(tmp_path, {"image": images(pictures), "caption": pa.array([f"{i}" for i in range(60)])})
    data = source(tmp_path)
    whole = harvested(data)
    monkeypatch.setattr(saved, "PART_BYTES", 75_000)
    parts = parts_of(data)
    assert len(parts) == 4 and len({part.name for part in parts}) == 4
    assert all(5 < len(harvest(data, part).pairs) < 25 for part in parts)
    pieces = harvested(data)
    assert pieces.pairs.to_numpy().tolist() == whole.pairs.to_numpy().tolist()
    assert list(pieces.images) == list(whole.images)


def test_a_batch_at_a_time_is_in_memory(tmp_path: Path) -> None:
    save(tmp_path, {"image": images([os.urandom(2**20)] * 40), "caption": pa.array(["猫"] * 40)})
    data = source(tmp_path)
    (part,) = parts_of(data)
    before = pa.total_allocated_bytes()
    found = harvest(data, part)
    for _, picture in found.images:
        assert len(picture) == 2**20 and pa.total_allocated_bytes() - before < 5 * 2**20


def test_a_file_with_any_bytes_changed_gives_rows_or_an_error_of_the_users(tmp_path: Path) -> None:
    columns = {"image": images([picture[:20] for picture in PICTURES]), "captions": pa.array([["猫", "狗"]] * 6)}
    file = save(tmp_path, columns) / "data-00000-of-00001.arrow"

    def read() -> None:
        found = harvested(source(tmp_path))
        assert len(list(found.images)) <= len(found.pairs)

    refused, kept = refused_or_read(file, 300, read)
    assert refused > 50 and kept > 50
