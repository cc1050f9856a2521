"""Thousands of damaged files of each format: rows kept or refused, or an error that names the file; never more, soon.

`SEEDS=100` in the environment damages each file so often.
"""

import io
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pyarrow as pa
from PIL import Image

from clip_core.config.sources import Source
from clip_core.errors import UserError
from clip_core.image import read_image
from tests import test_folder_source, test_muge_source, test_saved_source, test_table_formats, test_webdataset_source
from tests.damage import refused_or_read
from tests.harvested import harvested
from tests.small_raw import drawing, encoded

MOST_MIB = 2048
PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


def prove() -> dict:
    """For each format how many damaged files were refused as a whole, and how many read; and the peak memory."""
    seeds, found = int(os.environ.get("SEEDS", "3000")), {}
    for name, prepare in (*SOURCES.items(), *((f"picture, {kind}", _picture(kind)) for kind in PICTURES)):
        with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
            for file, read in prepare(Path(scratch)):
                refused, was_read = refused_or_read(file, seeds, read)
                found[f"{name}, {file.name}" if name == "muge" else name] = {"refused": refused, "read": was_read}
                print(f"{name}: {refused:,} refused, {was_read:,} read", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert peak < MOST_MIB
    return {"seeds": seeds, "formats": found, "peak_mib": round(peak)}


Prepared = Iterator[tuple[Path, Callable[[], object]]]


def _reading(data: Source) -> Callable[[], object]:
    """Reads all of it; every picture of the pairs comes, and nothing else."""

    def read() -> None:
        found = harvested(data)
        given = [image_id for image_id, _ in found.images]
        assert sorted(given) == sorted(set(found.pairs["image_id"].dropna()))

    return read


def _table(ending: str) -> Callable[[Path], Prepared]:
    def prepare(folder: Path) -> Prepared:
        for number in range(5):
            (folder / f"{number}.png").write_bytes(encoded(drawing(number)))
        file = test_table_formats.write(folder / f"pairs.{ending}", test_table_formats.rows(20))
        yield file, _reading(test_table_formats.source(folder))

    return prepare


def _tar(folder: Path) -> Prepared:
    members = [one for number in range(4) for one in test_webdataset_source.sample(f"{number}", f"{number}")]
    tar = test_webdataset_source.write_tar(folder / "x.tar", members)
    yield tar, _reading(test_webdataset_source.source(folder))


def _saved(folder: Path) -> Prepared:
    pictures = test_saved_source.images([picture[:20] for picture in test_saved_source.PICTURES])
    columns = {"image": pictures, "captions": pa.array([["\u732b", "\u72d7"]] * 6)}
    saved = test_saved_source.save(folder, columns)
    yield saved / "data-00000-of-00001.arrow", _reading(test_saved_source.source(folder))


def _muge(folder: Path) -> Prepared:
    data = test_muge_source.data_set(folder)
    for ending in ("_imgs.tsv", "_texts.jsonl"):
        yield Path(data.path) / f"train{ending}", _reading(data)


def _text(folder: Path) -> Prepared:
    data = test_folder_source.source(folder)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encoded(drawing(number)))
        (folder / f"{number}.txt").write_text("\u4e00\u53ea\u732b\n\u732b\n", encoding="utf-8")
    yield folder / "1.txt", _reading(data)


def _picture(kind: str) -> Callable[[Path], Prepared]:
    def prepare(folder: Path) -> Prepared:
        file, picture = folder / "picture", io.BytesIO()
        Image.effect_noise((64, 48), 60).convert("RGB").save(picture, kind)
        file.write_bytes(picture.getvalue())

        def read() -> None:
            try:
                read_image(file.read_bytes())
            except ValueError as error:
                raise UserError(f"{file.name}: {error}") from None

        yield file, read

    return prepare


SOURCES: dict[str, Callable[[Path], Prepared]] = {
    **{f"table, {ending}": _table(ending) for ending in test_table_formats.FORMATS},
    "webdataset": _tar,
    "saved": _saved,
    "folder": _text,
    "muge": _muge,
}
