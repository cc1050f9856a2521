"""A benchmark's data in the user's folder, read and checked: what is missing, or of another number, is refused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip_core.config.engine import Engine
from clip_core.config.section import hash_of
from clip_core.config.sources import (
    EmojiSource,
    FolderSource,
    IconparkSource,
    MugeSource,
    SavedSource,
    TableSource,
    WebDatasetSource,
)
from clip_core.data.ingestion import ingest
from clip_core.data.pairs import read_images, read_pairs, read_rejected
from clip_core.data.sources import parts_of
from clip_core.data.sources.muge import test_parts_of
from clip_core.errors import UserError
from clip_core.evaluate.benchmark import Benchmark, benchmark_of
from clip_core.evaluate.benchmarks.class_folders import read_class_folders
from clip_core.evaluate.benchmarks.described import Classification, Retrieval
from clip_core.inference.features import Shelf
from clip_core.kept import hashes_of

if TYPE_CHECKING:
    import pandas as pd

SOURCES = {
    "muge": MugeSource,
    "folder": FolderSource,
    "webdataset": WebDatasetSource,
    "table": TableSource,
    "saved": SavedSource,
}
ALL_IS_TEST = {"valid_percent": 0, "test_percent": 100}  # of what names no split; params.yaml may not say so


@dataclass(frozen=True)
class Asked:
    """A retrieval benchmark: texts, pictures, and which go together; the pictures lie on `shelves` in this order."""

    asked: Benchmark
    shelves: list[Shelf]

    @property
    def data_id(self) -> str:
        """The hash of all pictures, texts and pairs."""
        pairs = self.asked.pairs.tolist()
        return hash_of([shelf.key for shelf in self.shelves], self.asked.texts, self.asked.text_ids, pairs)


@dataclass(frozen=True)
class Labelled:
    """A classification benchmark."""

    class_names: list[str]
    labels: np.ndarray  # (pictures,) places in class_names; (pictures, classes) bool where one may have several
    shelves: list[Shelf]
    index: list[int] | None  # the challenge's order of the pictures

    @property
    def data_id(self) -> str:
        """The hash of all pictures, labels and class names."""
        return hash_of([shelf.key for shelf in self.shelves], self.labels.tolist(), self.class_names)


def open_retrieval(name: str, benchmark: Retrieval, data: Path | None, engine: Engine) -> Asked:
    """The texts and pictures in the user's folder."""
    folder = folder_of(name, benchmark.folder, data)
    kind = SOURCES[benchmark.source]
    keys = dict.fromkeys(kind.model_fields) | {"source": benchmark.source, "path": str(folder)}
    if benchmark.source == "muge":
        source = MugeSource.model_validate(keys | {"test": benchmark.files or "test"})
        parts = test_parts_of(source)
    else:
        source = kind.model_validate(keys).model_copy(update=ALL_IS_TEST)
        parts = parts_of(source)
    if benchmark.source == "folder":
        _check_texts(name, [path for part in parts for path in part.reads])
    results = list(ingest(source, parts, engine).values())
    rows = _test_rows(name, results, str(folder))
    shelves = _shelves(results, set(rows["image_id"].dropna()))
    asked = benchmark_of(rows.assign(seen=True), [image_id for shelf in shelves for image_id in shelf.image_ids])
    _check(name, folder, "pictures", len(asked.image_ids), benchmark.num_pictures)
    _check(name, folder, "texts", len(asked.texts), benchmark.num_texts)
    return Asked(asked, shelves)


def open_classification(name: str, benchmark: Classification, data: Path | None, engine: Engine) -> Labelled:
    """The pictures in class folders of the user's, or of a built-in source by its groups."""
    if benchmark.source is not None:
        found, where = _of_groups(name, benchmark.source, engine), Path(benchmark.source.path)
    else:
        where = folder_of(name, benchmark.folder or ".", data)
        found = Labelled(*read_class_folders(where, benchmark.pictures, benchmark.metric == "map_11_points"))
    _check(name, where, "classes", len(found.class_names), benchmark.num_classes)
    _check(name, where, "pictures", len(found.labels), benchmark.num_pictures)
    return found


def folder_of(name: str, folder: str, data: Path | None) -> Path:
    """`folder` in the user's folder of data, or that itself where it is of this name."""
    if data is None:
        raise UserError(f"{name}: DATA names no folder: the one that holds {folder!r}, or is it")
    for found in (data / folder, data):
        if found.is_dir() and (found != data or data.resolve().name == Path(folder).name):
            return found
    raise UserError(f"{name}: {data / folder}: no such folder. DATA names the folder that holds {folder!r}, or is it.")


def _of_groups(name: str, source: EmojiSource | IconparkSource, engine: Engine) -> Labelled:
    if source.source == "iconpark":
        source = source.model_copy(update=ALL_IS_TEST)
    results = list(ingest(source, parts_of(source), engine).values())
    rows = _test_rows(name, results, source.path).dropna(subset=["image_id", "group"]).drop_duplicates("image_id")
    group = dict(zip(rows["image_id"], rows["group"], strict=True))
    names = sorted(set(group.values()))
    shelves, place = _shelves(results, set(group)), {name: i for i, name in enumerate(names)}
    return Labelled(names, np.array([place[group[one]] for shelf in shelves for one in shelf.image_ids]), shelves, None)


def _test_rows(name: str, results: Sequence[Path], where: str) -> "pd.DataFrame":
    """The rows of test of all parts; raises UserError where one was refused, or there is none."""
    import pandas as pd

    for result in results:
        if len(refused := read_rejected(result)):
            first = refused.iloc[0]
            raise UserError(
                f"{name}: {first['file']}, line {first['line']}: {first['reason']}; {len(refused):,} rows like this. A "
                "benchmark is measured whole: mend them, or take the files from their source again."
            )
    tables = [read_pairs(result / "pairs.parquet") for result in results if (result / "pairs.parquet").exists()]
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"split": []})
    rows = rows[(rows["split"] == "test").to_numpy(bool)]
    if rows.empty:
        raise UserError(f"{name}: {where}: nothing there is of the split test, and a benchmark has no other")
    return rows


def _shelves(results: Sequence[Path], wanted: set[str]) -> list[Shelf]:
    """The wanted pictures of the parts' results, each in the first that has it."""
    import pyarrow.parquet as pq

    shelves, left = [], set(wanted)
    files = [file for result in results if (file := result / "images.parquet").exists()]
    for file, sha256 in zip(files, hashes_of(files), strict=True):
        ids = pq.read_table(file, columns=["image_id"])["image_id"].to_pylist()
        if here := [image_id for image_id in ids if image_id in left]:
            left.difference_update(here)
            shelves.append(Shelf(hash_of(sha256, here), here, partial(_pictures, file, frozenset(here))))
    return shelves


def _pictures(file: Path, wanted: frozenset[str]) -> Iterator[bytes]:
    return (image for image_id, image in read_images(file) if image_id in wanted)


def _check_texts(name: str, files: Sequence[Path]) -> None:
    """Refuses texts without a caption: their pictures would stand as such that no text names, and a query be lost."""
    for file in files:
        if file.suffix.lower() == ".txt" and not file.read_text(encoding="utf-8-sig", errors="replace").strip():
            raise UserError(
                f"{name}: {file}, line 1: text_blank. A line is a query: write one there, or take the file away if no "
                "text names the picture."
            )


def _check(name: str, folder: Path, what: str, found: int, wanted: int | None) -> None:
    if wanted is not None and found != wanted:
        raise UserError(
            f"{name}: {folder}: {found:,} {what}, but the benchmark has {wanted:,}. Take all of it from its source "
            "again; figures on a part are none of the benchmark (a YAML file of your own may name another number)."
        )
