"""A folder of pictures with a text beside each becomes pairs; what can be none is set aside by name."""

import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest

from clip_core.config.sources import FolderSource
from clip_core.data.sources import folder as adapter
from clip_core.data.sources import harvest, parts_of
from clip_core.errors import UserError
from tests.harvested import harvested
from tests.small_raw import drawing, encoded
from tests.test_table_source import without_privileges

PICTURE = encoded(drawing(0))


def source(folder: Path, **changed: object) -> FolderSource:
    values = {"licence": None, "valid_percent": None, "test_percent": None} | changed
    return FolderSource.model_validate({"source": "folder", "path": str(folder)} | values)


def apart(folder: Path) -> FolderSource:
    """With places for valid and test, so that `train` is all train."""
    write(folder, {"valid/.keep": "", "test/.keep": ""})
    return source(folder)


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_each_line_of_the_text_beside_a_picture_is_a_caption(tmp_path: Path) -> None:
    files = {
        "train/b.JPG": PICTURE,
        "train/b.txt": "\ufeff一只猫\r\n\r\n 白猫，睡着了 \r\n一只猫",  # half a last line, and one twice
        "train/in/deep/a.b.webp": PICTURE,
        "train/in/deep/a.b.txt": "狗\n",
        "train/notes.md": "其他",
        "train/.hidden.png": b"",
    }
    apart(write(tmp_path, files))
    found = harvested(source(tmp_path, licence="CC0-1.0"))
    assert found.pairs[["image_id", "caption"]].to_numpy().tolist() == [
        ["train/b.JPG", "一只猫"],
        ["train/b.JPG", "白猫，睡着了"],
        ["train/b.JPG", "一只猫"],
        ["train/in/deep/a.b.webp", "狗"],
    ]
    assert found.pairs["pair_id"].is_unique and set(found.pairs["licence"]) == {"CC0-1.0"}
    assert list(found.images) == [("train/b.JPG", PICTURE), ("train/in/deep/a.b.webp", PICTURE)]
    assert len(found.rejected) == 0


def test_a_sub_folder_named_after_a_split_is_that_split_and_the_id_decides_on_the_rest(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"{top}/{i}.png": PICTURE for top in ("test", "more", "train") for i in range(200)}
    files |= {name.replace("png", "txt"): "猫" for name in files}
    pairs = harvested(source(write(tmp_path, files), valid_percent=20, test_percent=20)).pairs
    top = pairs["image_id"].str.split("/").str[0]
    assert set(pairs["split"][top == "test"]) == {"test"}
    assert set(pairs["split"][top == "more"]) == {"train", "valid"}  # no test but that one
    assert set(pairs["split"][top == "train"]) == {"train", "valid"}  # there is no other valid
    (tmp_path / "test").rename(tmp_path / "other")
    pairs = harvested(source(tmp_path, valid_percent=20, test_percent=20)).pairs
    assert pairs["split"].value_counts(normalize=True)["test"] == pytest.approx(0.2, abs=0.1)


@pytest.mark.parametrize(
    ("name", "content", "reason", "line"),
    [
        ("train/x.png", b"", "picture_empty", 0),
        ("train/x.png", PICTURE, "no_caption", 0),
        ("train/x.txt", "孤单的文字", "no_picture", 1),
        ("train/a.txt", "好\n一只猫\n".encode() + "一只狗".encode("gb18030"), "line_not_utf8", 3),
        ("train/a.txt", "好\n一只猫\n".encode() + b"\xed\xa0\xbd", "line_not_utf8", 3),  # a lone surrogate
        ("train/x.txt", b"x" * 10_000_000, "text_too_large", 0),
        (b"train/x\xff.png", PICTURE, "name_not_utf8_or_too_long", 0),
        (b"train/x\xff.txt", "猫", "name_not_utf8_or_too_long", 0),
    ],
)
def test_what_can_be_no_pair_is_one_rejected_row(
    name: str | bytes, content: bytes | str, reason: str, line: int, tmp_path: Path
) -> None:
    write(tmp_path, {"train/a.png": PICTURE, "train/a.txt": "好\n一只猫"} | {os.fsdecode(name): content})
    found = harvested(apart(tmp_path))
    assert found.rejected[["reason", "line"]].to_numpy().tolist() == [[reason, line]]
    shown = os.fsdecode(name).encode("utf-8", "backslashreplace").decode()
    assert found.rejected["file"].tolist() == [f"{tmp_path}/{shown}"]
    assert found.pairs["caption"].tolist() == ["好", "一只猫"] and [one for one, _ in found.images] == ["train/a.png"]


def test_links_out_of_the_folder_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"secret/x.png": PICTURE, "mine/train/a.png": PICTURE, "mine/train/a.txt": "猫"})
    train = tmp_path / "mine" / "train"
    (train / "b.png").symlink_to(tmp_path / "secret" / "x.png")
    (train / "c.png").symlink_to(train / "none.png")
    (train / "d.png").symlink_to("d.png")
    (train / "e").symlink_to(tmp_path / "secret")
    (train / "f").symlink_to("..")
    (train / "a2.png").symlink_to("a.png")  # inside it
    (train / "a2.txt").write_text("又一只猫", encoding="utf-8")
    (train / "h.txt").symlink_to("/dev/zero")
    (train / "i.png").mkdir()
    os.mkfifo(train / "g.png")
    found = harvested(apart(tmp_path / "mine"))
    assert found.rejected[["image_id", "reason"]].sort_values("image_id").to_numpy().tolist() == [
        ["train/b.png", "outside_folder"],
        ["train/c.png", "no_plain_file"],
        ["train/d.png", "no_plain_file"],
        ["train/e", "folder_is_link"],
        ["train/f", "folder_is_link"],
        ["train/g.png", "no_plain_file"],
        ["train/h.txt", "no_plain_file"],
    ]
    assert found.pairs["image_id"].tolist() == ["train/a.png", "train/a2.png"]
    assert all(path.is_file() for part in parts_of(source(tmp_path / "mine")) for path in part.reads)


def test_a_picture_that_may_not_be_read_is_refused() -> None:
    with tempfile.TemporaryDirectory() as place:  # tmp_path lies in a folder of root's
        Path(place).chmod(0o755)
        write(Path(place), {"train/a.png": PICTURE, "train/a.txt": "猫", "train/b.png": PICTURE, "train/b.txt": "狗"})
        data = apart(Path(place))
        (Path(place) / "train" / "a.png").chmod(0)
        with without_privileges():
            found = harvested(data)
    reasons = found.rejected[["image_id", "reason"]].to_numpy().tolist()
    assert reasons == [["train/a.png", "unreadable"], ["train/a.txt", "no_picture"]]
    assert found.pairs["image_id"].tolist() == ["train/b.png"]


def test_in_valid_and_test_a_picture_and_a_text_may_be_alone(tmp_path: Path) -> None:
    found = harvested(source(write(tmp_path, {"test/a.png": PICTURE, "valid/b.txt": "猫\n狗"})))
    assert found.pairs[["image_id", "caption", "split"]].fillna("").to_numpy().tolist() == [
        ["test/a.png", "", "test"],
        ["", "猫", "valid"],
        ["", "狗", "valid"],
    ]
    assert found.pairs["pair_id"].is_unique and len(found.rejected) == 0


def test_a_folder_without_pictures_or_without_being_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no picture in it .*`data.path` names the folder"):
        parts_of(source(write(tmp_path, {"a.txt": "猫"})))
    with pytest.raises(UserError, match=r"a\.txt: can not be read: Not a directory. `data.path`"):
        parts_of(source(tmp_path / "a.txt"))


def many(folder: Path, tops: range, num: int = 40) -> FolderSource:
    names = [f"{top}/{i}" for top in tops for i in range(num)]
    return source(write(folder, {f"{n}.png": PICTURE for n in names} | {f"{n}.txt": f"猫{n}" for n in names}))


def test_a_new_file_or_sub_folder_changes_few_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "PART_PICTURES", 100)
    before = {part.name: part.reads for part in parts_of(many(tmp_path, range(50)))}
    assert 20 < len(before) < 80
    assert max(sum(path.suffix == ".png" for path in reads) for reads in before.values()) <= 100
    write(tmp_path, {"7/new.png": PICTURE, "7/new.txt": "新"})
    after = {part.name: part.reads for part in parts_of(source(tmp_path))}
    assert len(set(after.items()) ^ set(before.items())) <= 4
    before, after = after, {part.name: part.reads for part in parts_of(many(tmp_path, range(50, 51)))}
    assert len(set(after.items()) ^ set(before.items())) <= 4


def test_a_large_sub_folder_is_cut_and_all_parts_give_what_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = many(tmp_path, range(3), 200)
    (one,) = parts_of(data)
    whole = harvest(data, one)
    monkeypatch.setattr(adapter, "PART_BYTES", 50 * len(PICTURE))
    assert len(parts_of(data)) > 10
    pieces = harvested(data)
    assert sorted(pieces.pairs["pair_id"]) == sorted(whole.pairs["pair_id"])
    assert dict(pieces.images) == dict(whole.images)


def test_the_pictures_of_a_part_are_never_in_memory_together(tmp_path: Path) -> None:
    write(tmp_path, {f"{i}.png": os.urandom(2**20) for i in range(40)} | {f"{i}.txt": "猫" for i in range(40)})
    data = source(tmp_path)
    (part,) = parts_of(data)
    tracemalloc.start()
    assert sum(len(picture) for _, picture in harvest(data, part).images) == 40 * 2**20
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()
