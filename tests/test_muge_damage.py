"""The reference's files in any state: each line is kept, or named with its reason; a file that is none is named."""

import base64
import binascii
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clip_core.config.sources import MugeSource
from clip_core.data.sources import muge_lines, parts_of
from clip_core.errors import UserError
from tests.damage import refused_or_read
from tests.harvested import harvested
from tests.test_muge_parts import pictures, source, write_many
from tests.test_muge_source import PICTURES, picture_line, text_line, write_split


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the data; the process runs beside it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def reasons_of(data: MugeSource) -> list[tuple[str, str, int]]:
    """The refused lines: reason, file, line."""
    found = harvested(data)
    files = found.rejected["file"].map(lambda file: Path(file).name)
    return sorted(zip(found.rejected["reason"], files, found.rejected["line"].astype(int), strict=True))


def object_line(**told: object) -> bytes:
    return json.dumps({"text_id": 50, "text": "猫", "image_ids": [1]} | told).encode()


TEXTS = {
    "not_utf8": b'{"text_id": 50, "text": "\xff", "image_ids": [1]}',
    "not_json": b"[" * 100_000,
    "key_repeated": b'{"text_id": 50, "text_id": 51, "text": "", "image_ids": [1]}',
    "line_too_long": object_line(text="长" * 2_000_000),
    "text_too_long": object_line(text="长" * 20_000),
    "id_too_long": object_line(image_ids=["1" * 1025]),
    "text_blank": object_line(text="\u3000"),
    "image_ids_are_no_ids": object_line(image_ids=[1.0]),
}
MORE_TEXTS = [
    ("not_unicode", object_line(text="\ud800")),
    ("not_unicode", object_line(text_id="\ud800")),
    ("not_unicode", object_line(image_ids=["\udfff"])),
    ("not_json", b'{"text_id": ' + b"9" * 10_000 + b', "text": "", "image_ids": [1]}'),
    ("not_json", object_line()[:-3]),
    ("no_text_id_text_and_image_ids", object_line(text_id=float("nan"))),
    ("no_text_id_text_and_image_ids", object_line(text_id=True)),
    ("no_text_id_text_and_image_ids", object_line(text=["猫"])),
    ("no_text_id_text_and_image_ids", object_line(image_ids={"1": 1})),
    ("no_text_id_text_and_image_ids", object_line(image_ids="1")),
    ("no_text_id_text_and_image_ids", b"null"),
    ("image_ids_are_no_ids", object_line(image_ids=[[1]])),
    ("image_ids_are_no_ids", object_line(image_ids=[""])),
]


@pytest.mark.parametrize(("reason", "line"), [*TEXTS.items(), *MORE_TEXTS])
def test_a_bad_line_of_texts_is_refused_and_those_around_it_stay(reason: str, line: bytes, folder: Path) -> None:
    write_many(folder, "train", 4)
    file = folder / "train_texts.jsonl"
    before = file.read_bytes()
    file.write_bytes(before + b"\r\n \n" + line + b"\r\n" + text_line(60, "雨", [0]).encode())
    found = harvested(source(folder))
    assert reasons_of(source(folder)) == [(reason, file.name, 7)]
    assert "雨" in found.pairs["caption"].tolist() and len(found.pairs) == 5
    file.write_bytes(before + line)  # without an end
    assert reasons_of(source(folder)) == [(reason, file.name, 5)]


ENCODED = base64.b64encode(PICTURES[5])


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("image_id_not_utf8", b"\xff\t" + ENCODED),
        ("image_id_too_long", b"7" * 5000 + b"\t" + ENCODED),
        ("no_id_and_base64", "\u3000\t".encode() + ENCODED),
        ("no_id_and_base64", b"7\t\r"),
        ("no_id_and_base64", b"7" * 10_000_000),
        ("not_base64", b"7\t" + ENCODED[:-3].rstrip(b"=")[: len(ENCODED) // 4 * 4 - 7]),
        ("not_base64", b"7\t=" + ENCODED),
        ("not_base64", b"7\t" + ENCODED + b"\t" + ENCODED),
        ("not_base64", b"7\t" + ENCODED + b"===="),
        ("not_base64", b"7\t\x00" + ENCODED),
        ("image_id_repeated", b" 3 \t" + ENCODED),
    ],
)
def test_a_bad_line_of_pictures_is_refused_and_those_around_it_stay(reason: str, line: bytes, folder: Path) -> None:
    write_many(folder, "train", 4)
    file = folder / "train_imgs.tsv"
    before = file.read_bytes()
    file.write_bytes(before + b"\r\n \n" + line + b"\r\n" + pictures(9).encode())
    write_split(folder, "test", text_line(1, "猫", [9]), pictures(9))
    found = harvested(source(folder))
    assert reasons_of(source(folder)) == [(reason, file.name, 7)]
    assert len(found.pairs) - found.pairs["text_id"].isna().sum() == 5
    assert dict(found.images)["train/3"] == PICTURES[3]


def test_a_byte_order_mark_line_ends_of_windows_ids_of_any_kind_and_unknown_keys_change_nothing(folder: Path) -> None:
    folder.mkdir()
    texts = [
        {"text_id": "b7", "text": " 两\x00只\n猫 ", "image_ids": [1, "1", " 图/一"], "x": float("nan")},
        {"text_id": -1, "text": "鸟", "image_ids": [10**30]},
    ]
    lines = [f"1\t{ENCODED.decode()}", "", f" 图/一\t {ENCODED.decode()} ", f"{10**30}\t{ENCODED.decode().rstrip('=')}"]
    (folder / "train_texts.jsonl").write_bytes("\ufeff".encode() + "\r\n".join(map(json.dumps, texts)).encode())
    (folder / "train_imgs.tsv").write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    found = harvested(source(folder))
    assert found.pairs[["pair_id", "caption"]].to_numpy().tolist() == [
        ["train/b7/1", "两\x00只\n猫"],
        ["train/b7/图/一", "两\x00只\n猫"],
        [f"train/-1/{10**30}", "鸟"],
    ]
    assert found.rejected.empty and {image for _, image in found.images} == {PICTURES[5]}


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf", b"\x00" * 100, ENCODED])
@pytest.mark.parametrize("name", ["train_texts.jsonl", "train_imgs.tsv"])
def test_a_file_that_gives_nothing_ends_it_with_the_files_name(content: bytes, name: str, folder: Path) -> None:
    write_many(folder, "train", 4)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"train_texts\.jsonl: not one of its \d lines makes a pair; the first: "):
        parts_of(source(folder))


def lines_in(file: Path) -> int:
    """How many lines of the file are not blank."""
    return sum(bool(line.strip()) for line in file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"))


@pytest.mark.parametrize("name", ["train_texts.jsonl", "train_imgs.tsv"])
def test_a_file_with_any_bytes_changed_gives_a_row_a_line_or_an_error_of_the_users(name: str, folder: Path) -> None:
    write_many(folder, "train", 3)
    write_split(folder, "test", text_line(1, "猫", [9]), pictures(9))

    def read() -> None:
        found = harvested(source(folder))
        refused = Counter(file.rpartition("_")[2] for file in found.rejected["file"])
        num_pictures = len(list(found.images)) + found.more["training_pictures_that_no_text_names"]
        for kept, ending in ((num_pictures, "imgs.tsv"), (int(found.pairs["text_id"].count()), "texts.jsonl")):
            assert kept + refused[ending] == sum(lines_in(folder / f"{split}_{ending}") for split in ("train", "test"))

    refused, kept = refused_or_read(folder / name, 60, read)  # 3,000 in `make prove NAME=fuzz`
    assert kept > 30 and refused > 0


def test_pictures_are_in_memory_one_at_a_time(folder: Path) -> None:
    rows = "".join(picture_line(i, bytes([i]) * 2**20) for i in range(40))
    write_split(folder, "train", "".join(text_line(i, "猫", [i]) for i in range(40)), rows)
    parts_of(source(folder))  # imports
    tracemalloc.start()
    (folder / "train_imgs.tsv").write_text(rows + pictures(99))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    found = harvested(source(folder))
    assert sum(len(picture) for _, picture in found.images) == 40 * 2**20
    assert tracemalloc.get_traced_memory()[1] - before < 8 * 2**20
    tracemalloc.stop()


def test_base64_gives_the_bytes_that_the_standard_library_gives() -> None:
    random = np.random.default_rng(0)
    alphabet = np.frombuffer(b"Az09+/-_==\n ~", np.uint8)
    seen = {True: 0, False: 0}
    for _ in range(20_000):
        encoded = random.choice(alphabet, random.integers(0, 9)).tobytes()
        answer = muge_lines.decoded(encoded)
        plain = encoded.strip().translate(bytes.maketrans(b"-_", b"+/"))
        try:
            expected = base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
        except binascii.Error:
            expected = b""
        surplus = len(plain.rstrip(b"=")) % 4 == 0 and plain.endswith(b"=")  # padding that pads nothing is refused
        assert answer == (b"" if surplus else expected), encoded
        seen[bool(answer)] += 1
    assert min(seen.values()) > 1000
