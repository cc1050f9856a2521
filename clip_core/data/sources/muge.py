"""The reference's format: a table of base64 pictures (`_imgs.tsv`) with texts that name them (`_texts.jsonl`)."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from clip_core.config.sources import MugeSource
from clip_core.data.pairs import COLUMNS, HELD_OUT, ORIGIN
from clip_core.data.sources import MEASURED, Harvest, Part
from clip_core.data.sources.folders import shard_name
from clip_core.data.sources.muge_index import Index, index_of
from clip_core.data.sources.muge_lines import decoded, texts_in
from clip_core.data.sources.rows import UNKNOWN
from clip_core.data.sources.split import PERCENT
from clip_core.errors import UserError
from clip_core.kept import state_of

TRAIN, TEST = "train", ("test", "valid")  # what files are called where params.yaml says null


class Files(NamedTuple):
    """The two files of a name, and the splits that their pictures go to: several where some are drawn from train."""

    name: str
    splits: tuple[str, ...]

    def pictures(self, data: MugeSource) -> Path:
        return Path(data.path) / f"{self.name}_imgs.tsv"

    def texts(self, data: MugeSource) -> Path:
        return Path(data.path) / f"{self.name}_texts.jsonl"

    def indexed(self, data: MugeSource) -> Index:
        return index_of(self.pictures(data), self.texts(data), self.splits[0] in HELD_OUT)

    def split_of(self, key: str, data: MugeSource) -> str:
        """The picture's split: a function of its id, so that new pictures move no old one."""
        percent = PERCENT if data.valid_percent is None else data.valid_percent
        drawn = int.from_bytes(sha256(key.encode()).digest()[:4]) % 100 // percent + 1
        return self.splits[drawn] if drawn < len(self.splits) else self.splits[0]


def parts_of(data: MugeSource) -> list[Part]:
    """Parts of pictures, with the pairs of the texts that name them, and for each texts file those of the rest.

    The digest of a part's own rows and pictures stands in `at`, so that a changed line is work for its part alone.
    """
    parts = []
    for files in _files_of(data):
        index = files.indexed(data)
        _check(index.about(), index, files, data)
        parts += _parts_of(files, data)
    return parts


def test_parts_of(data: MugeSource) -> list[Part]:
    """Those of the files that `data.test` names, all of which is test: of a benchmark, which needs no other split."""
    assert data.test
    return list(_parts_of(Files(data.test, ("test",)), data))


def _parts_of(files: Files, data: MugeSource) -> Iterator[Part]:
    about = files.indexed(data).about()
    for table, ending in (("pictures", ""), ("rest", "-texts")):
        for number, digest in enumerate(about["digests"][table]):
            name = f"{shard_name(files.name)}{ending}-{number:05d}"
            yield Part(name, (), (files.name, " ".join(files.splits), table, number, digest))


def _files_of(data: MugeSource) -> Iterator[Files]:
    """The files of the splits that are there; what is not is drawn from train's pictures."""
    train = data.train or TRAIN
    taken = {train, data.valid}
    free = (name for name in TEST if name not in taken and _names_pictures(Files(name, ()).texts(data)))
    test = data.test or next(free, None)
    yield Files(train, (TRAIN, *(["valid"] * (not data.valid)), *(["test"] * (not test))))
    yield from (Files(name, (split,)) for split, name in (("valid", data.valid), ("test", test)) if name)


def _names_pictures(file: Path) -> bool:
    return file.exists() and any(text.image_ids for text in texts_in(file))


def _check(about: dict[str, Any], index: Index, files: Files, data: MugeSource) -> None:
    """Raises UserError where nothing can be learned or measured on the files."""
    file, num_texts = files.texts(data), about["texts"]
    if num_texts and about["unlabelled"] == num_texts:
        raise UserError(
            f"{file}: none of its {num_texts} texts names a picture: its answers are not published, so nothing "
            f"can be measured on it. Name another in `data.{files.splits[0]}` (MUGE: `test: valid` and `valid: null`)."
        )
    if not about["pairs"]:
        refused = (f"line {row['line']}, {row['fault']}" for row in index.rows("rest", 0) if row["fault"])
        first = next(refused, "there is none")
        raise UserError(
            f"{file}: not one of its {num_texts} lines makes a pair; the first: {first}. Are the pictures that it "
            f"names in {files.pictures(data)}?"
        )


def harvest(data: MugeSource, part: Part) -> Harvest:
    """The pairs of the part, one for each text and picture that it names. What can be none is refused by itself.

    In valid and test a picture that no text names, and a text that names no picture, is a row of its own, since the
    reference searches all of them; training has no use for either.
    """
    name, splits, table, number, _digest = part.at
    files = Files(str(name), tuple(str(splits).split()))
    state = state_of(files.pictures(data))
    index = files.indexed(data)
    if table == "rest":
        found = index.rows("rest", int(number))
        rows = [_row(row, files, data) for row in found if not row["fault"]]
        return _harvest(rows, [_refused(row, files.texts(data), files) for row in found if row["fault"]])
    pictures = index.rows("pictures", int(number))
    places = {row["image_id"]: row for row in pictures if not row["fault"]}
    pairs = index.rows("pairs", int(number))
    unnamed = places.keys() - {row["image_id"] for row in pairs}
    candidates = sorted(key for key in unnamed if files.split_of(key, data) in HELD_OUT)
    rows = [_row(row, files, data) for row in [*pairs, *({"image_id": key, "text_id": None} for key in candidates)]]
    refused = [_refused(row, files.pictures(data), files) for row in pictures if row["fault"]]
    unused = unnamed.difference(candidates)
    found = _harvest(rows, refused, len(unused))
    kept = [places[key] for key in sorted(places.keys() - unused)]
    return replace(found, images=_pictures_at(kept, files, data, state))


def _harvest(rows: list[dict], refused: list[dict], num_unused: int = 0) -> Harvest:
    """The rows; the pictures are still missing."""
    import pandas as pd

    return Harvest(
        pairs=pd.DataFrame(rows, columns=[name for name in COLUMNS if name not in MEASURED]),
        images=iter(()),
        rejected=pd.DataFrame(refused, columns=[*ORIGIN, "image_id", "text_id", "caption"]),
        more={
            "training_pictures_that_no_text_names": num_unused,
            "pictures_without_text": sum(row["text_id"] is None for row in rows),
            "texts_without_picture": sum(row["image_id"] is None for row in rows),
        },
    )


def _row(found: dict[str, Any], files: Files, data: MugeSource) -> dict[str, str | None]:
    """The pair of a text and a picture, or one alone; the files' name keeps the splits' numbers apart."""
    key, text_id = found["image_id"], found["text_id"]
    is_text = text_id is not None
    return {
        "pair_id": f"{files.name}/{text_id or ''}/{key or ''}",
        "image_id": f"{files.name}/{key}" if key else None,
        "text_id": f"{files.name}/{text_id}" if is_text else None,
        "caption": found["caption"] if is_text else None,
        "language": "zh" if is_text else None,
        "caption_kind": "caption" if is_text else None,
        "concept_id": None,
        "family": None,
        "group": None,
        "split": files.split_of(key, data) if key else files.splits[0],
        "source": "muge",
        "licence": data.licence or UNKNOWN,
    }


def _refused(found: dict[str, Any], file: Path, files: Files) -> dict[str, Any]:
    """The rejected row of a line, or of a picture that a line names."""
    ids = {name: f"{files.name}/{found[name]}" if found.get(name) else None for name in ("image_id", "text_id")}
    origin = {"reason": found["fault"], "file": str(file), "line": found["line"]}
    return origin | ids | {"caption": found.get("caption")}


def _pictures_at(
    places: list[dict[str, Any]], files: Files, data: MugeSource, state: str
) -> Iterator[tuple[str, bytes]]:
    file = files.pictures(data)
    with file.open("rb") as opened:
        for place in places:
            opened.seek(place["offset"])
            yield f"{files.name}/{place['image_id']}", decoded(opened.read(place["length"]))
    if state_of(file) != state:
        raise UserError(f"{file}: the file changed while it was read. Run again.")
