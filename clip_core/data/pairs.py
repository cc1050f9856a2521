"""The pair table, a row an image-caption pair, and the picture shards beside it.

In valid and test a row may also be a picture without text, or a text without picture: what it lacks is null. They are
candidates that a search must tell from the right answers. A row of train is always a pair.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.errors import UserError

if TYPE_CHECKING:  # heavy, and light commands reach this module
    import pandas as pd
    import pyarrow as pa

SHARD_BYTES = 128 * 2**20  # of pictures in one parquet file
ROW_GROUP = 500  # pictures that a reader has in memory at a time
SPLITS = ("train", "valid", "test")
HELD_OUT = ("valid", "test")
LANGUAGES = ("zh", "en")
CAPTION_KINDS = ("name", "keyword", "caption")
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
SEEN = {"seen": "bool"}  # added by curation: the concept occurs in train (or the source has no concepts)
ORIGIN = {"reason": "string", "file": "string", "line": "int64"}  # of a rejected row


def schema_of(columns: dict[str, str]) -> "pa.Schema":
    """The columns as an arrow schema."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(alias)) for name, alias in columns.items()])


def write_pairs(pairs: "pd.DataFrame", path: Path) -> None:
    """Writes the pair table; a column that is missing, unknown or of another type is refused."""
    _write_table(pairs, COLUMNS | (SEEN if "seen" in pairs.columns else {}), path)


def read_pairs(path: Path) -> "pd.DataFrame":
    """The pair table, with or without the column `seen`."""
    import pyarrow.parquet as pq

    if not path.exists():
        raise UserError(f"{path}: no such pair table. Run the stage that makes it: `dvc repro`.")
    return pq.read_table(path).to_pandas()


def write_rejected(rejected: "pd.DataFrame", folder: Path) -> None:
    """Writes the quarantine of a stage: the rows with the reason, and the file and line they came from."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: alias for name, alias in COLUMNS.items() if name in rejected.columns}
    _write_table(rejected, ORIGIN | known, folder / "rejected.parquet")


def write_counts(folder: Path, read: int, kept: int, reasons: Iterable[str], **more: object) -> None:
    """Writes `counts.json`: how many rows came in, went on and were rejected, and why."""
    by_reason = dict(sorted(Counter(reasons).items()))
    rejected = sum(by_reason.values())
    assert read == kept + rejected, f"{read} rows read, but {kept} kept and {rejected} rejected"
    counts = {"read": read, "kept": kept, "rejected": rejected, "by_reason": by_reason, **more}
    (folder / "counts.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_images(images: Iterable[tuple[str, bytes]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the pictures (id, encoded bytes) as parquet shards of about `shard_bytes`, in the order they come."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
    by_shard = groupby(_numbered(images, shard_bytes), key=lambda row: row[0])
    for number, (_, rows) in enumerate(by_shard):
        with pq.ParquetWriter(folder / f"images-{number:05d}.parquet", schema, compression="none") as writer:
            while some := list(islice(rows, ROW_GROUP)):
                _, image_ids, encoded = zip(*some, strict=True)
                writer.write_table(pa.table({"image_id": image_ids, "image": encoded}, schema))


def _numbered(images: Iterable[tuple[str, bytes]], shard_bytes: int) -> Iterator[tuple[int, str, bytes]]:
    written = 0
    for image_id, image in images:
        yield written // shard_bytes, image_id, image
        written += len(image)


def read_images(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The pictures (id, encoded bytes) of all shards, in order; a row group at most is in memory."""
    import pyarrow.parquet as pq

    for shard in sorted(folder.glob("images-*.parquet")):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP):
                for image_id, image in zip(batch["image_id"], batch["image"], strict=True):
                    yield image_id.as_py(), image.as_py()


def write_fingerprints(images: "pd.DataFrame", path: Path) -> None:
    """Writes the pictures' fingerprints, which curation compares."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image_id", pa.string()), ("difference_hash", pa.uint64()), ("thumbnail", pa.binary())])
    pq.write_table(pa.Table.from_pandas(images[schema.names], schema, preserve_index=False), path)


def read_fingerprints(path: Path) -> "pd.DataFrame":
    """The fingerprints that `write_fingerprints` wrote."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pandas()


def _write_table(rows: "pd.DataFrame", columns: dict[str, str], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert set(rows.columns) == set(columns), f"{path}: columns {set(rows.columns) ^ set(columns)} missing or unknown"
    pq.write_table(pa.Table.from_pandas(rows[list(columns)], schema_of(columns), preserve_index=False), path)
