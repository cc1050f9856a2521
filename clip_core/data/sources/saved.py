"""A folder that the `datasets` library saved (`save_to_disk`), of one data set or, as a dictionary, of one a split."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.config.sources import SavedSource
from clip_core.data.sources import Harvest, Part
from clip_core.data.sources.arrow import batches_in, schema_in
from clip_core.data.sources.columns import Columns, columns_of
from clip_core.data.sources.folders import LONGEST_PICTURE, PART_BYTES, read_json, shard_name, shown
from clip_core.data.sources.rows import Origin, Record, Rows
from clip_core.data.sources.split import SPLIT_NAMES
from clip_core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def parts_of(data: SavedSource) -> list[Part]:
    """A file of a data set is a part; one that is much larger is cut, by the place in it where batches begin."""
    folder = Path(data.path)
    names = _splits_in(folder)
    parts = []
    for name in names:
        for file in _files_of(folder / name):
            info = file.with_name("dataset_info.json")
            num_pieces = max(1, round(file.stat().st_size / PART_BYTES))
            for i in range(num_pieces):
                stem = "-".join([*([name] if name else []), file.stem, *([str(i)] if num_pieces > 1 else [])])
                parts.append(Part(shard_name(stem), (file, info), (name, " ".join(names), i, num_pieces)))
    return parts


def _splits_in(folder: Path) -> list[str]:
    """The sub-folders of a dictionary of data sets; one empty name where the folder is a data set itself."""
    file = folder / "dataset_dict.json"
    if not file.exists():
        return [""]
    names = read_json(file).get("splits")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: `splits` must be a list of names, not {shown(repr(names))}")
    if unknown := [name for name in names if name not in SPLIT_NAMES]:
        raise UserError(
            f"{file}: no split of ours is called {shown(repr(unknown[0]))}. Rename it there, and its folder, to one of "
            f"{', '.join(SPLIT_NAMES)}; or let `data.path` name the folder of a single split."
        )
    return names


def _files_of(folder: Path) -> list[Path]:
    """The data set's files, which `state.json` lists; what else lies there may be of an earlier save."""
    file = folder / "state.json"
    state = read_json(file)
    if state.get("_indices_data_files"):
        raise UserError(f"{file}: rows were chosen, but not written. Call `flatten_indices()` and save again.")
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{file}: `_data_files` lists none. `data.path` names a folder that `save_to_disk` wrote.")
    names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in listed]
    for name in names:
        if not isinstance(name, str) or shown(name) != name or name != Path(name).name or not (folder / name).is_file():
            raise UserError(f"{file}: {shown(repr(name))} is no file beside it. Copy the whole folder again.")
    if len(set(names)) < len(names):
        raise UserError(f"{file}: a file is listed twice. Save the data set again.")
    return [folder / name for name in names]


def harvest(data: SavedSource, part: Part) -> Harvest:
    """The rows of the batches that begin in the part's piece of the file, each by itself pairs or a rejected row."""
    file, info = part.reads
    name, names, piece, num_pieces = str(part.at[0]), str(part.at[1]), int(part.at[2]), int(part.at[3])
    size = file.stat().st_size
    begins = range(piece * size // num_pieces, (piece + 1) * size // num_pieces)
    columns = columns_of(data, schema_in(file), read_json(info).get("features"), file)
    rows, kept = Rows(data, tuple(names.split())), set()
    place = {"split": rows.split_at(name)}
    stem = file.relative_to(data.path).with_suffix("").as_posix()
    for first, batch in batches_in(file, columns.names, begins):
        captions = _captions_in(batch, columns)
        told = {name: batch[name].to_pylist() for name in columns.told}
        for i, size_of_picture in enumerate(_sizes_in(batch, columns)):
            image_id, origin = f"{stem}/{first + i:08d}", Origin(str(file), first + i + 1)
            said = {name: value for name in told if (value := (told[name][i] or "").strip())}
            if size_of_picture > LONGEST_PICTURE:
                rows.reject("picture_too_large", origin, image_id)
            elif rows.add(Record(image_id, size_of_picture > 0, captions[i], origin, **(place | said))):
                kept |= {first + i} if size_of_picture else set()
    return rows.harvest(_pictures_in(file, columns, begins, stem, kept))


def _content_of(batch: "pa.RecordBatch", columns: Columns) -> "pa.Array":
    """The encoded pictures; null where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = batch[columns.image]
    if not pa.types.is_struct(column.type):
        return column
    return pc.call_function("struct_field", [column], pc.StructFieldOptions(["bytes"]))


def _sizes_in(batch: "pa.RecordBatch", columns: Columns) -> list[int]:
    import pyarrow.compute as pc

    return [size or 0 for size in pc.call_function("binary_length", [_content_of(batch, columns)]).to_pylist()]


def _captions_in(batch: "pa.RecordBatch", columns: Columns) -> list[tuple[str, ...]]:
    """What the columns of captions, of texts or of lists of texts, say of each row; blank ones say nothing."""
    said: list[list[str | None]] = [[] for _ in range(batch.num_rows)]
    for name in columns.captions:
        for texts, value in zip(said, batch[name].to_pylist(), strict=True):
            texts += value if isinstance(value, list) else [value]
    return [tuple(text.strip() for text in texts if text and text.strip()) for texts in said]


def _pictures_in(file: Path, columns: Columns, begins: range, stem: str, kept: set[int]) -> Iterator[tuple[str, bytes]]:
    for first, batch in batches_in(file, [columns.image], begins):
        content = _content_of(batch, columns)
        yield from ((f"{stem}/{first + i:08d}", content[i].as_py()) for i in range(len(content)) if first + i in kept)
