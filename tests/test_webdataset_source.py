"""Tars as img2dataset writes them become pairs; bad members are set aside with their number, bad tars named."""

import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_core.config.sources import WebDatasetSource
from clip_core.data.sources import harvest, parts_of, webdataset
from clip_core.errors import UserError
from tests.damage import refused_or_read
from tests.harvested import harvested
from tests.small_raw import drawing, encoded

PICTURE = encoded(drawing(0), "JPEG")


def source(folder: Path, **changed: object) -> WebDatasetSource:
    values = {"licence": None, "valid_percent": None, "test_percent": None} | changed
    return WebDatasetSource.model_validate({"source": "webdataset", "path": str(folder)} | values)


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **headers: str) -> tuple:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = len(content), kind, headers
    return info, content


def sample(key: str, caption: str | bytes = "一只猫", picture: bytes = PICTURE, **told: object) -> list[tuple]:
    """The three members that img2dataset writes for a download; it gives every one a pax header."""
    text = caption if isinstance(caption, bytes) else caption.encode()
    meta = json.dumps({"key": key, "status": "success", "width": 32} | told).encode()
    contents = {"jpg": picture, "json": meta, "txt": text}
    return [member(f"{key}.{ending}", content, mtime="1.5") for ending, content in contents.items()]


def write_tar(file: Path, members: list[tuple], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tar_format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return file


def test_a_sample_becomes_a_pair_whose_id_is_the_tars_name_and_the_key(tmp_path: Path) -> None:
    pictures = {f"{i:09d}": encoded(drawing(i), "JPEG") for i in (2, 0, 1)}  # in no order
    members = [one for key, picture in pictures.items() for one in sample(key, f"第{key}张", picture, split="train")]
    write_tar(tmp_path / "00000.tar", members)
    write_tar(tmp_path / "more" / "00000.tar", sample("000000000", "又一张", split="train"))
    found = harvested(source(tmp_path, licence="CC0-1.0"))
    assert found.pairs["image_id"].tolist() == [*(f"00000/{key}" for key in pictures), "more/00000/000000000"]
    assert found.pairs["caption"].tolist() == [*(f"第{key}张" for key in pictures), "又一张"]
    assert found.pairs["pair_id"].is_unique and set(found.pairs["licence"]) == {"CC0-1.0"}
    assert list(found.images) == [
        *((f"00000/{key}", pictures[key]) for key in sorted(pictures)),
        ("more/00000/000000000", PICTURE),
    ]
    assert len(found.rejected) == 0


def test_a_part_is_named_after_its_tar_whatever_else_is_there(tmp_path: Path) -> None:
    for name in ("00001", "中文", "A", "a", "in/00001", "in-00001"):
        write_tar(tmp_path / f"{name}.tar", sample("0"))
    write_tar(tmp_path / ".hidden.tar", sample("0"))
    names = [part.name for part in parts_of(source(tmp_path))]
    assert len(set(names)) == 6 and {"00001", "a", "in-00001"} <= set(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for name in names)
    write_tar(tmp_path / "00000.tar", sample("0"))
    assert {part.name for part in parts_of(source(tmp_path))} == {*names, "00000"}


def test_the_json_says_split_language_licence_and_where_there_is_no_text_the_caption(tmp_path: Path) -> None:
    members = sample("0", "a cat", language="en", licence="MIT", split="validation")
    told = json.dumps({"caption": " 狗 ", "split": "test", "language": None}, ensure_ascii=False)
    members += [member("1.webp", PICTURE), member("1.json", b"\xef\xbb\xbf" + told.encode())]
    write_tar(tmp_path / "x.tar", members)
    columns = ["image_id", "caption", "split", "language", "licence"]
    assert harvested(source(tmp_path)).pairs[columns].to_numpy().tolist() == [
        ["x/0", "a cat", "valid", "en", "MIT"],
        ["x/1", "狗", "test", "zh", "unknown"],
    ]


def test_without_a_split_the_id_decides_five_in_a_hundred_for_valid_and_for_test(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [one for i in range(600) for one in sample(f"{i:04d}", f"{i}")])
    pairs = harvested(source(tmp_path)).pairs
    share = pairs["split"].value_counts(normalize=True)
    assert 0.02 < share["valid"] < 0.08 and 0.02 < share["test"] < 0.08
    fewer = write_tar(tmp_path / "x.tar", [one for i in range(300, 600) for one in sample(f"{i:04d}", f"{i}")])
    assert fewer.exists()
    assert harvested(source(tmp_path)).pairs["split"].tolist() == pairs["split"].tolist()[300:]
    assert harvested(source(tmp_path, valid_percent=40)).pairs["split"].eq("valid").mean() > 0.3


DEEP = b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD = {  # the members of a sample, all of them in train -> the reason; they are members 4 and so on
    "picture_empty": sample("b", picture=b"", split="train"),
    "txt_too_large": sample("b", b"x" * 10_000_000, split="train"),
    "txt_not_utf8": sample("b", "红色的苹果".encode("gb18030"), split="train"),
    "no_caption": sample("b", " \n", split="train"),
    "no_picture": sample("b", split="train")[1:],
    "key_repeated": sample("a", split="train"),
    "json_too_large": [member("b.jpg", PICTURE), member("b.json", b"[" * 2_000_000)],
    "not_json": [member("b.jpg", PICTURE), member("b.json", DEEP)],
    "json_not_utf8": [member("b.jpg", PICTURE), member("b.json", b'{"caption": "\xff"}')],
    "json_is_no_object": [member("b.jpg", PICTURE), member("b.json", b"[1]")],
    "caption_is_no_text": [member("b.jpg", PICTURE), member("b.json", b'{"caption": NaN}')],
    "caption_has_lone_surrogates": [member("b.jpg", PICTURE), member("b.json", b'{"caption": "\\ud83d"}')],
    "split_unknown": sample("b", split="tset"),
    "path_leaves_tar": sample("../b", split="train"),
    "path_leaves_tar ": sample("/etc/b", split="train"),
    "path_leaves_tar  ": sample("x/../../b", split="train"),
    "name_not_utf8_or_too_long": [member("x" * 300 + ".jpg", PICTURE)],
    "name_not_utf8_or_too_long ": [member("b\udcff.jpg", PICTURE)],
    "member_is_link": [member("b.jpg", kind=tarfile.SYMTYPE), *sample("b", split="train")[1:]],
    "member_is_link ": [member("b.jpg", kind=tarfile.LNKTYPE), *sample("b", split="train")[1:]],
    "member_is_special": [member("b.jpg", kind=tarfile.FIFOTYPE), *sample("b", split="train")[1:]],
    "member_is_special ": [member("b.jpg", kind=tarfile.CHRTYPE)],
    "member_is_special  ": [member("pipe", kind=tarfile.FIFOTYPE)],
    "member_is_special   ": [member("b.jpg", PICTURE, **{"GNU.sparse.size": "9"})],
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_a_bad_sample_is_one_rejected_row_with_the_number_of_its_member(
    reason: str, tar_format: int, tmp_path: Path
) -> None:
    if "GNU.sparse.size" in BAD[reason][0][0].pax_headers and tar_format == tarfile.GNU_FORMAT:
        pytest.skip("a pax header")
    members = [*sample("a", split="train"), *BAD[reason], *sample("c", split="train")]
    tar = write_tar(tmp_path / "x.tar", members, tar_format)
    found = harvested(source(tmp_path))
    rejected = found.rejected[["reason", "file", "line"]].to_numpy().tolist()
    assert rejected == [[reason.strip(), str(tar), 4]]
    assert found.pairs["image_id"].tolist() == ["x/a", "x/c"]
    assert dict(found.images) == {"x/a": PICTURE, "x/c": PICTURE}
    pa.Table.from_pandas(found.rejected)  # can be written, whatever was in the names


def test_in_valid_and_test_a_sample_may_lack_its_picture_or_its_caption(tmp_path: Path) -> None:
    members = sample("a", " ", split="test") + sample("b", split="valid")[1:] + sample("c", " ", split="train")
    write_tar(tmp_path / "x.tar", members)
    found = harvested(source(tmp_path))
    assert found.pairs[["image_id", "caption", "split"]].fillna("").to_numpy().tolist() == [
        ["x/a", "", "test"],
        ["", "一只猫", "valid"],
    ]
    assert found.pairs["text_id"].notna().tolist() == [False, True]
    assert found.rejected["reason"].tolist() == ["no_caption"] and [name for name, _ in found.images] == ["x/a"]


def test_members_of_a_name_need_not_stand_together_and_those_of_other_kinds_are_counted(tmp_path: Path) -> None:
    """As `tar cf` of a folder writes them, with the folder itself and what a Mac adds."""
    members = [member("./", kind=tarfile.DIRTYPE), *sample("./b"), *sample("./a")]
    members = [*sorted(members, key=lambda one: one[0].name[::-1]), member("./a.cls", b"3"), member("./._a.jpg", b"x")]
    write_tar(tmp_path / "x.tar", members)
    found = harvested(source(tmp_path))
    assert sorted(found.pairs["image_id"]) == ["x/a", "x/b"] and found.pairs["caption"].notna().all()
    assert found.more["other_members"] == 2 and len(found.rejected) == 0


def lied(content: bytes, size: int) -> bytes:
    """The tar with another size of its first member, and the checksum to it."""
    header = bytearray(content[:512])
    header[124:136], header[148:156] = b"%011o\0" % size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda good: good[:700],
            r"byte 0: member 1 should have 774 bytes, and the file ends before: .*Fetch or write",
        ),
        (lambda good: good[:2560], r"byte 2560: ends after member 2 without the empty block"),
        (lambda good: good[:2600], r"byte 2560: ends after member 2 without the empty block"),
        (lambda good: good[:1600] + b"\xff" + good[1601:], r"byte 1536: no header of a tar's member 2: its checksum"),
        (lambda good: lied(good, 2**33 - 1), r"byte 0: member 1 should have 8,589,934,591 bytes"),
        (lambda good: lied(good, 10), r"byte 1024: no header of a tar's member 2"),
        (lambda _: b"", r"byte 0: ends after member 0"),
        (lambda _: b"\x1f\x8b" + b"x" * 600, r"byte 0: no header .*Unpack it if it is compressed"),
        (lambda good: good + good, r"the tar ends here, and [\d,]+ bytes follow. Are these several tars in one file"),
    ],
)
def test_a_damaged_tar_is_an_error_that_names_the_byte_and_a_remedy(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    members = [(info, content) for info, content in (member("a.jpg", b"j" * 774), member("a.txt", b"t"))]
    file = write_tar(tmp_path / "x.tar", members)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=rf"x\.tar, {message}" if message.startswith("byte") else message):
        harvested(source(tmp_path))


def test_a_folder_without_tars_and_a_tar_that_is_no_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file \*\.tar in it. `data.path` names"):
        parts_of(source(tmp_path))
    with pytest.raises(UserError, match=r"none: can not be read: No such file"):
        parts_of(source(tmp_path / "none"))
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(UserError, match=r"x\.tar: no file, or a link to none"):
        parts_of(source(tmp_path))


def test_what_img2dataset_says_of_its_downloads_is_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_tar(tmp_path / f"{name}.tar", sample("0"))
    stats = {"count": 5, "successes": 2, "failed_to_download": 2, "failed_to_resize": 1, "status_dict": {"404": 2}}
    (tmp_path / "a_stats.json").write_text(json.dumps(stats))
    status = ["success", "failed_to_download", "failed_to_resize", "success"]
    pq.write_table(pa.table({"status": status}), tmp_path / "a.parquet")  # says the same as the statistics
    pq.write_table(pa.table({"status": status}), tmp_path / "b.parquet")
    assert harvested(source(tmp_path)).more == {
        "downloads_tried": 9,
        "downloads_failed": 3,
        "downloads_not_resized": 2,
        "other_members": 0,
    }
    for table in ({"url": ["x"]}, {"status": [["x"]]}, {"status": pa.array([b"\x81"]).view(pa.string())}):
        pq.write_table(pa.table(table), tmp_path / "b.parquet")
        with pytest.raises(UserError, match=r"b\.parquet: no table of img2dataset's"):
            harvested(source(tmp_path))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"b\.parquet: no table of img2dataset's: .*Remove the file"):
        harvested(source(tmp_path))
    for wrong in ("[1]", "{", '{"count": 1}', json.dumps(stats | {"count": "5"}), "[" * 100_000):
        (tmp_path / "a_stats.json").write_text(wrong)
        with pytest.raises(UserError, match=r"a_stats\.json: "):
            harvested(source(tmp_path))


def test_a_large_tar_is_cut_into_parts_that_hold_every_sample_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [one for i in range(60) for one in sample(f"{i:02d}", f"{i}", os.urandom(5_000))] + sample("07")
    tar = write_tar(tmp_path / "x.tar", members)
    whole = harvested(source(tmp_path))
    monkeypatch.setattr(webdataset, "TAR_BYTES", tar.stat().st_size // 4)
    parts = parts_of(source(tmp_path))
    assert len(parts) == 4 and len({part.name for part in parts}) == 4
    pieces = [harvest(source(tmp_path), part) for part in parts]
    assert all(5 < len(one.pairs) < 25 for one in pieces)
    found = pd.concat([one.pairs for one in pieces])
    assert found.sort_values("pair_id").to_numpy().tolist() == whole.pairs.sort_values("pair_id").to_numpy().tolist()
    assert sum(len(one.rejected) for one in pieces) == len(whole.rejected) == 1
    assert dict(picture for one in pieces for picture in one.images) == dict(whole.images)


def test_the_pictures_of_a_tar_are_never_in_memory_together(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [one for i in range(40) for one in sample(f"{i}", picture=os.urandom(2**20))])
    (part,) = parts_of(source(tmp_path))
    tracemalloc.start()
    found = harvest(source(tmp_path), part)
    assert sum(len(picture) for _, picture in found.images) == 40 * 2**20
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()


def test_a_tar_with_any_bytes_changed_gives_rows_or_an_error_of_the_users(tmp_path: Path) -> None:
    members = [one for i in range(4) for one in sample(f"{i}", f"{i}")] + [member("x" * 150 + ".txt", b"long")]
    tar = write_tar(tmp_path / "x.tar", members)

    def read() -> None:
        found = harvested(source(tmp_path))
        assert len(list(found.images)) <= len(found.pairs) and len(found.pairs) + len(found.rejected) > 0

    refused, kept = refused_or_read(tar, 300, read)
    assert refused > 50 and kept > 50
