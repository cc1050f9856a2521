"""Tables of every format, in one file or many, cut into parts: each record is kept, or named with its reason."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_core.config.sources import TableSource
from clip_core.data.sources import harvest, parts_of, table_parquet, table_records
from clip_core.errors import UserError
from tests.conftest import ROOT
from tests.harvested import harvested
from tests.small_raw import drawing, encoded

CAPTIONS = ("一只猫", "她说“你好”", 'a "quoted", cat', "两\n行\r\n三行", "狗")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures 0.png to 4.png; the process runs beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for i in range(len(CAPTIONS)):
        (tmp_path / "mine" / f"{i}.png").write_bytes(encoded(drawing(i)))
    return tmp_path / "mine"


def source(folder: Path, **changed: object) -> TableSource:
    null = dict.fromkeys(("table", "columns", "fetch", "licence", "valid_percent", "test_percent"))
    return TableSource.model_validate({"source": "table", "path": str(folder), **null, **changed})


def rows(num: int = len(CAPTIONS)) -> list[dict[str, str]]:
    return [{"image": f"{i % 5}.png", "caption": CAPTIONS[i % 5]} for i in range(num)]


def write(file: Path, records: list[dict]) -> Path:
    """The records in the format that the file's ending names."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    else:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return file


FORMATS = ("csv", "tsv", "jsonl", "parquet")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_table_of_each_format_gives_the_same_pairs(ending: str, folder: Path) -> None:
    write(folder / f"pairs.{ending}", rows())
    found = harvested(source(folder))  # the path is all that must be known
    assert found.pairs["caption"].tolist() == list(CAPTIONS) and found.rejected.empty
    assert found.pairs["image_id"].tolist() == [f"{i}.png" for i in range(5)]
    assert set(found.pairs["licence"]) == {"unknown"} and set(found.pairs["split"]) <= {"train", "valid", "test"}
    assert list(found.images) == [(f"{i}.png", encoded(drawing(i))) for i in range(5)]


@pytest.mark.parametrize("ending", FORMATS)
def test_all_columns_are_used_under_the_names_that_params_give_them(ending: str, folder: Path) -> None:
    record = {
        "file": "0.png",
        "text": "猫",
        "key": "7",
        "tid": "t1",
        "split": "test",
        "language": "zh",
        "rights": "CC0",
    }
    write(folder / f"pairs.{ending}", [record, record | {"text": "狗", "tid": "t2", "rights": ""}])
    columns = {"image": "file", "caption": "text", "image_id": "key", "text_id": "tid", "licence": "rights"}
    found = harvested(source(folder, columns=columns, licence="mine"))
    wanted = ["image_id", "text_id", "caption", "split", "language", "licence"]
    assert found.pairs[wanted].to_numpy().tolist() == [
        ["7", "t1", "猫", "test", "zh", "CC0"],
        ["7", "t2", "狗", "test", "zh", "mine"],
    ]
    assert list(found.images) == [("7", encoded(drawing(0)))]
    with pytest.raises(UserError, match=r"pairs\.\w+.*no column label; the header is|not one of its 2 records"):
        harvested(source(folder, columns=columns | {"caption": "label"}))


@pytest.mark.parametrize("kind", ["binary", "struct"])
def test_parquet_may_hold_the_pictures_themselves(kind: str, folder: Path) -> None:
    pictures = [encoded(drawing(i)) for i in (3, 1, 3)]
    images = [data if kind == "binary" else {"bytes": data, "path": "same.png"} for data in pictures]
    write(folder / "pairs.parquet", [{"image": image, "caption": f"第{i}张"} for i, image in enumerate(images)])
    found = harvested(source(folder))
    by_id = dict(found.images)
    assert list(by_id) == sorted(by_id) and len(by_id) == 2  # one picture once
    assert [by_id[image_id] for image_id in found.pairs["image_id"]] == pictures
    assert found.pairs["pair_id"].is_unique


def test_a_struct_without_bytes_names_a_file(folder: Path) -> None:
    records = [{"image": {"bytes": None, "path": "2.png"}, "caption": "猫"}, {"image": None, "caption": "狗"}]
    write(folder / "pairs.parquet", records)
    found = harvested(source(folder))
    assert found.pairs["image_id"].tolist() == ["2.png"]
    assert found.rejected[["line", "reason"]].to_numpy().tolist() == [[2, "image_blank"]]


def test_several_files_keep_their_pairs_apart_and_a_glob_chooses(folder: Path) -> None:
    (folder / "more").mkdir()
    for name in ("a.csv", "b.jsonl", "more/B (2).parquet", "more/c.csv"):
        write(folder / name, rows())
    assert len(harvested(source(folder)).pairs) == 10  # those of the folder itself
    assert len(harvested(source(folder, table="more")).pairs) == 10
    found = harvested(source(folder, table="**/*"))
    assert len(found.pairs) == 20 and found.pairs["pair_id"].is_unique
    assert harvested(source(folder, table="a.csv")).pairs["pair_id"][0] == "0.png/line-2"
    names = [part.name for part in parts_of(source(folder, table="**/*"))]
    assert names[:2] == ["a.csv-00000", "b.jsonl-00000"] and len(set(names)) == 4
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for name in names)


def test_no_two_parts_have_one_name(folder: Path) -> None:
    names = ("a.csv", "A.csv", "a b.csv", "a-b.csv", "图.csv", "表.csv", f"{'x' * 200}1.csv", f"{'x' * 200}2.csv")
    for name in names:
        write(folder / name, rows())
    assert len({part.name for part in parts_of(source(folder))}) == len(names)


@pytest.mark.parametrize(("table", "message"), [
    ("none*.csv", r"no table there .*`data\.path` names the folder"),
    ("none.csv", r"none\.csv: no such file\. `data\.path` names the folder"),
    ("0.png", r"0\.png: the ending of `data\.table` must be one of \.csv"),
    (None, r"no table there"),
])  # fmt: skip
def test_where_there_is_no_table_the_error_says_where_it_looked(table: str, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        harvested(source(folder, table=table))


@pytest.mark.parametrize("table", ["../pairs.csv", "/etc/passwd"])
def test_a_table_outside_the_folder_is_refused(table: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="must be relative to the section's `path` and inside it"):
        source(folder, table=table)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_parts_together_give_what_the_whole_gives(
    ending: str, line_end: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(folder / f"pairs.{ending}", rows(103))
    if ending in ("csv", "tsv"):
        lines = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", line_end.encode())
        file.write_bytes(b"\xef\xbb\xbf" + lines.replace(b"0.png", b"none", 3) + line_end.encode() * 2)
    whole = harvested(source(folder))
    monkeypatch.setattr(table_records, "SPAN_RECORDS", 10)
    monkeypatch.setattr(table_parquet, "SPAN_RECORDS", 10)
    parts = parts_of(source(folder))
    assert len(parts) == 11
    found = [harvest(source(folder), part) for part in reversed(parts)]  # each by itself
    for name in ("pairs", "rejected"):
        table = pd.concat([getattr(one, name) for one in found])
        pd.testing.assert_frame_equal(
            table.sort_values("line" if name == "rejected" else "pair_id", ignore_index=True),
            getattr(whole, name).sort_values("line" if name == "rejected" else "pair_id", ignore_index=True),
            check_dtype=False,
        )
    assert len(whole.pairs) + len(whole.rejected) == 103


def test_a_part_of_long_records_has_fewer_of_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "pairs.csv", rows(100))
    monkeypatch.setattr(table_records, "SPAN_BYTES", 500)
    assert len(parts_of(source(folder))) > 4 and len(harvested(source(folder)).pairs) == 100


def test_records_at_the_end_change_the_last_part_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_records, "SPAN_RECORDS", 10)
    for ending in ("csv", "jsonl"):
        write(folder / f"pairs.{ending}", rows(35))
        before = parts_of(source(folder, table=f"pairs.{ending}"))
        write(folder / f"pairs.{ending}", rows(36))
        after = parts_of(source(folder, table=f"pairs.{ending}"))
        assert [part == other for part, other in zip(before, after, strict=True)] == [True, True, True, False]
        changed = write(
            folder / f"pairs.{ending}", [{**row, "caption": "x"} if i == 12 else row for i, row in enumerate(rows(36))]
        )
        again = parts_of(source(folder, table=changed.name))
        assert [part.at[-1] == other.at[-1] for part, other in zip(after, again, strict=True)] == [
            True,
            False,
            True,
            True,
        ]


def test_the_pictures_of_a_part_decide_as_well(folder: Path) -> None:
    write(folder / "pairs.csv", [*rows(2), {"image": "none.png", "caption": "猫"}, {"image": "x\0", "caption": "猫"}])
    assert harvested(source(folder)).files == [folder / name for name in ("0.png", "1.png", "none.png")]


def test_small_row_groups_are_one_part_and_large_ones_several(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_parquet, "SPAN_RECORDS", 20)
    pq.write_table(pa.Table.from_pylist(rows(40)), folder / "small.parquet", row_group_size=7)
    pq.write_table(pa.Table.from_pylist(rows(40)), folder / "large.parquet", row_group_size=30)
    spans = {part.name: part.at[-2] for part in parts_of(source(folder))}
    assert [size for name, size in spans.items() if name.startswith("small")] == [14, 14, 12]
    assert [size for name, size in spans.items() if name.startswith("large")] == [20, 20]
    assert len(harvested(source(folder)).pairs) == 80


MEASURED = """
import resource, sys
import pandas, pyarrow.parquet
from clip_core.config.sources import TableSource
from tests.harvested import harvested

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = harvested(TableSource.model_validate_json(sys.argv[1]))
assert sum(len(image) for _, image in found.images) == 200_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 2**10)
"""


def test_pictures_in_parquet_are_never_all_in_memory(folder: Path) -> None:
    noise = random.Random(0)
    images = [noise.randbytes(500_000) for _ in range(400)]
    table = pa.table({"image": images, "caption": [f"{i}" for i in range(400)]})
    pq.write_table(table, folder / "pairs.parquet", write_batch_size=4)  # one row group, pages of 1 MiB
    command = [sys.executable, "-c", MEASURED, source(folder).model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert int(told.split()[-1]) < 90  # MiB, of 191


def test_one_large_value_in_all_rows_is_not_decoded_for_all_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary makes such a file small: 200 rows of 100 kB are 100 kB."""
    write(folder / "pairs.parquet", [{"image": b"x" * 100_000, "caption": f"{i}"} for i in range(200)])
    assert (folder / "pairs.parquet").stat().st_size < 200_000
    monkeypatch.setattr(table_parquet, "BATCH_BYTES", 1_100_000)
    sizes = []
    cells = table_parquet._cells
    monkeypatch.setattr(table_parquet, "_cells", lambda array: sizes.append(len(array)) or cells(array))
    assert len(harvested(source(folder)).pairs) == 200 and max(sizes) <= 10


@pytest.mark.parametrize(("records", "reasons"), [
    ([("7", "0.png", "猫"), ("7", "0.png", "狗"), ("7", "1.png", "鸟")], {4: "image_id_with_other_picture"}),
    ([("7", "0.png", "猫"), ("7", "copy.png", "狗")], {}),
    ([("7", "none.png", "猫"), ("7", "1.png", "鸟")], {2: "image_missing"}),
    ([("x" * 1025, "0.png", "猫"), ("8", "1.png", "鸟")], {2: "image_id_too_long"}),
])  # fmt: skip
def test_an_image_id_means_one_picture(records: list[tuple], reasons: dict[int, str], folder: Path) -> None:
    (folder / "copy.png").write_bytes(encoded(drawing(0)))
    write(
        folder / "pairs.csv", [dict(zip(("image_id", "image", "caption"), record, strict=True)) for record in records]
    )
    found = harvested(source(folder))
    assert dict(found.rejected[["line", "reason"]].to_numpy().tolist()) == reasons
    assert len(found.pairs) + len(reasons) == len(records)


def test_a_text_id_means_one_caption(folder: Path) -> None:
    write(folder / "pairs.csv", [{**row, "text_id": "1"} for row in rows(2)])
    found = harvested(source(folder))
    assert found.rejected[["line", "reason", "text_id", "caption"]].to_numpy().tolist() == [
        [3, "text_id_with_other_caption", "1", CAPTIONS[1]]
    ]


GOOD = b'{"image": "0.png", "caption": "\xe7\x8c\xab"}\n'


@pytest.mark.parametrize(("line", "reason"), [
    (b'{"image": "1.png", "caption": "\xb0\xa1"}', "not_utf8"),
    (rb'{"image": "1.png", "caption": "\ud83d"}', "caption_not_unicode"),
    (rb'{"image": "1\ud83d.png", "caption": "a"}', "image_not_unicode"),
    (b"[" * 100_000 + b"]" * 100_000, "not_json"),
    (b'{"image":' * 100_000, "not_json"),
    (b'{"image": "1.png", "caption": "\xe7', "not_utf8"),
    (b'{"image": "1.png", "caption": "a', "not_json"),
    (b'{"image": "1.png", "caption": "' + b"a" * 10_000_000 + b'"}', "record_too_long"),
    (b'{"image": "1.png", "caption": "' + b"a" * 20_000 + b'"}', "caption_too_long"),
    (b'{"image": "1.png", "caption": NaN}', "caption_not_text"),
    (b'{"image": 7, "caption": "a"}', "image_not_text"),
    (b'{"image": ["1.png"], "caption": "a"}', "image_not_text"),
    (b'{"image": "1.png", "caption": "a", "image_id": true}', "image_id_not_text"),
    (b'{"image": "1.png", "caption": "a", "text_id": ' + b"9" * 5000 + b"}", "not_json"),
    (b'{"image": "1.png", "caption": "a", "caption": "b"}', "key_repeated"),
    (b'{"caption": "a"}', "image_blank"),
    (b'{"image": "1.png"}', "caption_blank"),
    (b'{"image": "1.png", "caption": null}', "caption_blank"),
    (b'["1.png", "a"]', "not_an_object"),
    (b"1.png,a", "not_json"),
    (b'{"image": "../outside.png", "caption": "a"}', "image_outside_folder"),
    (b'{"image": "file:///etc/passwd", "caption": "a"}', "url_scheme"),
    (b'{"image": "http://127.0.0.1:1/a.png", "caption": "a"}', "url_private_address"),
    (b'{"image": "http://169.254.169.254/latest", "caption": "a"}', "url_private_address"),
    (b'{"image": "pipe", "caption": "a"}', "image_missing"),
    (b'{"image": "large.png", "caption": "a"}', "image_too_large"),
])  # fmt: skip
def test_a_bad_line_of_jsonl_is_set_aside_and_its_neighbours_stay(line: bytes, reason: str, folder: Path) -> None:
    (folder.parent / "outside.png").write_bytes(b"x")
    os.mkfifo(folder / "pipe")
    with (folder / "large.png").open("wb") as large:
        large.truncate(2**28)  # a hole: it takes no room
    (folder / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + line + b"\n" + GOOD.rstrip())
    found = harvested(source(folder, valid_percent=1, test_percent=1))
    assert found.rejected[["line", "reason"]].to_numpy().tolist() == [[3, reason]]
    assert found.pairs["pair_id"].tolist() == ["0.png/pairs.jsonl/line-1", "0.png/pairs.jsonl/line-4"]
    pa.Table.from_pandas(found.rejected)  # what is shown of it can be written


@pytest.mark.parametrize(("record", "reason"), [
    ("1.png," + "长" * 4_000_000, "record_too_long"),
    ("1.png," + "长" * 20_000, "caption_too_long"),
    ("file:///etc/passwd,a", "url_scheme"),
    ("http://[::1]/a.png,a", "url_private_address"),
    ("1.p", "wrong_number_of_cells"),
])  # fmt: skip
def test_a_bad_record_of_csv_is_set_aside(record: str, reason: str, folder: Path) -> None:
    (folder / "pairs.csv").write_text(f"image,caption\r\n0.png,猫\r\n{record}", encoding="utf-8", newline="")
    found = harvested(source(folder))
    assert found.rejected[["line", "reason"]].to_numpy().tolist() == [[3, reason]] and len(found.pairs) == 1


@pytest.mark.parametrize(("name", "start", "repeated", "message"), [
    ("pairs.jsonl", b"", b"", r"pairs\.jsonl: not one of its 0 records is a pair; the first: there is none"),
    ("pairs.tsv", b"", b"", r"pairs\.tsv, line 1: no column image and no column caption"),
    ("pairs.tsv", b"image,caption\n", b"", r"pairs\.tsv, line 1: no column image"),
    ("pairs.csv", b'image,caption\n0.png,a\n"', b"a,\n", r"pairs\.csv, line 3: a record of .*Is a quote open"),
    ("pairs.csv", b"image,caption\n", b"aaa", r"pairs\.csv, line 2: longer than 16,777,216 bytes"),
    ("pairs.jsonl", b"", b"aaa", r"pairs\.jsonl, line 1: longer than 16,777,216 bytes"),
    ("pairs.csv", "image,caption\n0.png,a\n".encode("utf-16"), b"", r"pairs\.csv, line 1: not UTF-8"),
    ("pairs.parquet", b"", b"", r"pairs\.parquet: not a whole parquet file"),
    ("pairs.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", b"", r"pairs\.parquet: not a whole parquet file"),
])  # fmt: skip
def test_a_bad_file_is_named_with_the_line(
    name: str, start: bytes, repeated: bytes, message: str, folder: Path
) -> None:
    (folder / name).write_bytes(start + repeated * 6_000_000)
    with pytest.raises(UserError, match=message):
        harvested(source(folder))


@pytest.mark.parametrize(("columns", "message"), [
    ({"image": pa.array([1.5]), "caption": ["a"]}, "the column image has the type double, and a path, a URL, bytes"),
    ({"image": ["0.png"], "caption": pa.array([float("nan")])}, "the column caption has the type double, and text is"),
    ({"image": ["0.png"], "caption": [["a", "b"]]}, "the column caption has the type list"),
    ({"image": ["0.png"], "caption": [b"a"]}, "the column caption has the type binary"),
    ({"image": [{"data": b"x"}], "caption": ["a"]}, "the column image has the type struct<data: binary>"),
    ({"image": ["0.png"], "caption": ["a"], "split": [1]}, "the column split has the type int64"),
    ({"image": ["0.png"]}, "no column caption; the header is"),
])  # fmt: skip
def test_a_wrong_type_in_parquet_is_named_with_file_and_column(columns: dict, message: str, folder: Path) -> None:
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    with pytest.raises(UserError, match=rf"pairs\.parquet: {message}"):
        parts_of(source(folder))


def test_a_column_twice_in_parquet_is_named(folder: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array(["0.png"]), pa.array(["a"]), pa.array(["b"])], ["image", "caption", "caption"]
    )
    pq.write_table(table, folder / "pairs.parquet")
    with pytest.raises(UserError, match="the column caption stands there more than once"):
        parts_of(source(folder))


def test_nulls_and_broken_text_in_parquet_are_set_aside_by_row(folder: Path) -> None:
    raw = pa.array([b"a", b"\xff", None, b"b"], pa.binary())
    captions = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    columns = {"image": ["0.png", "1.png", "2.png", None], "caption": captions, "image_id": [1, 2, 3, None]}
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    found = harvested(source(folder))
    assert found.pairs["image_id"].tolist() == ["1"]
    assert found.rejected[["line", "reason"]].to_numpy().tolist() == [
        [2, "caption_not_unicode"],
        [3, "caption_blank"],
        [4, "image_blank"],
    ]


@pytest.mark.parametrize("ending", FORMATS)
def test_flipped_bytes_give_rows_or_an_error_in_words(ending: str, folder: Path) -> None:
    """600 broken files a format, by a seed: not one traceback, and each record kept or named."""
    records = [{**row, "image_id": f"id-{i}"} for i, row in enumerate(rows(20))]
    if ending == "parquet":
        records = [{**row, "image": encoded(drawing(i % 7))} for i, row in enumerate(records)]
    whole = write(folder / f"pairs.{ending}", records).read_bytes()
    chance, outcomes = random.Random(f"flips of {ending}"), {"rows": 0, "error": 0}
    for _ in range(600):
        broken = bytearray(whole)
        for _ in range(chance.choice((1, 3, 30))):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        if chance.random() < 0.2:
            del broken[chance.randrange(len(broken)) :]
        (folder / f"pairs.{ending}").write_bytes(broken)
        try:
            parts = parts_of(source(folder))
            found = harvested(source(folder))
            assert len(found.pairs) + len(found.rejected) == sum(int(part.at[-2]) for part in parts)
            assert all(isinstance(image, bytes) for _, image in found.images)
            pa.Table.from_pandas(found.rejected), pa.Table.from_pandas(found.pairs)
            outcomes["rows"] += 1
        except UserError as error:
            assert f"pairs.{ending}" in str(error)
            outcomes["error"] += 1
    assert min(outcomes.values()) > 5, outcomes
