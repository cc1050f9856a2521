"""The pair table, a row an image-caption pair, and the pictures beside it, in shards.

A folder of data holds `pairs-<shard>.parquet` and, where pictures are, `images-<shard>.parquet`.

In valid and test a row may also be a picture without text, or a text without picture: what it lacks is null. They are
candidates that a search must tell from the right answers. A row of train is always a pair.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_core.errors import UserError

if TYPE_CHECKING:  # heavy, and light commands reach this module
    import pandas as pd
    import pyarrow as pa

ROW_GROUP, ROW_GROUP_BYTES = 500, 32 * 2**20  # at most so much of pictures is in a reader's memory at a time
SPLITS = ("train", "valid", "test")
HELD_OUT = ("valid", "test")
LANGUAGES = ("zh", "en")
CAPTION_KINDS = ("name", "keyword", "unseen_word", "caption")  # unseen_word: a keyword that train never says
COLUMNS = {
    "pair_id": "string",
    "image_id": "string",  # this and image_sha256 are null in a text without picture
    "text_id": "string",  # this, caption, language and caption_kind are null in a picture without text
    "caption": "string",
    "language": "string",
    "caption_kind": "string",
    "concept_id": "string",  # this, family and group are null where a source has none
    "family": "string",
    "group": "string",
    "split": "string",
    "source": "string",
    "licence": "string",
    "image_sha256": "string",
    "width": "int32",  # 0 where the picture's header can not be read, or there is no picture
    "height": "int32",
    "num_bytes": "int64",
}
CURATED = {
    "seen": "bool",  # the concept occurs in train (or the source has no concepts)
    "near_duplicate_group": "string",  # the image_id of the picture that this one resembles, be it itself
}
FACTS = {  # of a picture, as validation measured it
    "image_id": "string",
    "image_sha256": "string",
    "difference_hash": "uint64",
    "thumbnail": "binary",  # 16 x 16 RGB pixels
    "width": "int32",
    "height": "int32",
    "num_bytes": "int64",
}
ORIGIN = {"reason": "string", "file": "string", "line": "int64"}  # of a rejected row


def schema_of(columns: dict[str, str]) -> "pa.Schema":
    """The columns as an arrow schema."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(alias)) for name, alias in columns.items()])


def write_pairs(pairs: "pd.DataFrame", path: Path) -> None:
    """Writes the pair table of a shard; a column that is missing, unknown or of another type is refused."""
    _write_table(pairs, COLUMNS | {name: alias for name, alias in CURATED.items() if name in pairs.columns}, path)


def shards_in(folder: Path) -> list[str]:
    """The names of the shards in a folder of data, sorted; raises UserError where there is none."""
    if names := sorted(path.stem.removeprefix("pairs-") for path in folder.glob("pairs-*.parquet")):
        return names
    raise UserError(f"{folder}: no pair table there. Run the stage that makes it: `dvc repro`.")


def read_pairs(path: Path) -> "pd.DataFrame":
    """The pair table in the file `path`, or of all shards in the folder: as much as fits into memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [path / f"pairs-{shard}.parquet" for shard in shards_in(path)] if path.is_dir() else [path]
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pandas()


def write_rejected(rejected: "pd.DataFrame", folder: Path) -> None:
    """Writes the quarantine of a stage: the rows with the reason, and the file and line they came from."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: alias for name, alias in COLUMNS.items() if name in rejected.columns}
    _write_table(rejected, ORIGIN | known, folder / "rejected.parquet")


def read_rejected(folder: Path) -> "pd.DataFrame":
    """The quarantine of a stage, of all shards."""
    import pandas as pd

    return pd.concat([pd.read_parquet(file) for file in sorted(folder.glob("rejected*.parquet"))], ignore_index=True)


def sum_counts(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Numbers added up by name, within names as well."""
    total: dict[str, Any] = {}
    for one in counts:
        for name, value in one.items():
            before = total.get(name)
            total[name] = sum_counts([before or {}, value]) if isinstance(value, dict) else (before or 0) + value
    return total


def read_counts(folders: Iterable[Path]) -> dict[str, Any]:
    """The counts of shards, added up."""
    return sum_counts(json.loads((folder / "counts.json").read_text(encoding="utf-8")) for folder in folders)


def write_counts(
    folder: Path, read: int, kept: int, reasons: Iterable[str] | Mapping[str, int], **more: object
) -> None:
    """Writes `counts.json`: how many rows came in, went on and were rejected, and why, each or by number."""
    by_reason = dict(sorted(Counter(reasons).items()))
    rejected = sum(by_reason.values())
    assert read == kept + rejected, f"{read} rows read, but {kept} kept and {rejected} rejected"
    counts = {"read": read, "kept": kept, "rejected": rejected, "by_reason": by_reason, **more}
    (folder / "counts.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_images(images: Iterable[tuple[str, bytes]], file: Path) -> None:
    """Writes the pictures (id, encoded bytes) of a shard, in the order they come."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
    # plain: what the writer would find out about pictures, or share among them, takes longer than writing them
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for some in _row_groups(images):
            image_ids, encoded = zip(*some, strict=True)
            writer.write_table(pa.table({"image_id": image_ids, "image": encoded}, schema))


def _row_groups(images: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    some, size = [], 0
    for image_id, image in images:
        some.append((image_id, image))
        size += len(image)
        if len(some) == ROW_GROUP or size > ROW_GROUP_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def read_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """The pictures (id, encoded bytes) in the file `path`, or of all shards in the folder; a row group is in memory."""
    import pyarrow.parquet as pq

    for shard in sorted(path.glob("images-*.parquet")) if path.is_dir() else [path]:
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                batch = file.read_row_group(group)
                for image_id, image in zip(batch["image_id"], batch["image"], strict=True):
                    yield image_id.as_py(), image.as_py()


def write_facts(facts: "pd.DataFrame", path: Path) -> None:
    """Writes what validation has measured on a shard's pictures; their fingerprints are what curation compares."""
    _write_table(facts, FACTS, path)


def _write_table(rows: "pd.DataFrame", columns: dict[str, str], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert set(rows.columns) == set(columns), f"{path}: columns {set(rows.columns) ^ set(columns)} missing or unknown"
    pq.write_table(pa.Table.from_pandas(rows[list(columns)], schema_of(columns), preserve_index=False), path)
