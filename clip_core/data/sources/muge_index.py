"""Which texts name which pictures in a split's two files, cut into parts: made once for each content of the files."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clip_core.config.section import hash_of
from clip_core.data.sources import muge_lines
from clip_core.data.sources.folders import PART_BYTES, PART_PICTURES
from clip_core.data.tables import connected
from clip_core.kept import hashes_of, keep, mark_of

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

PART_PAIRS = 50_000
BATCH_ROWS, BATCH_SIZE = 10_000, 2**24  # rows, characters and ids on their way into the database at once
WHERE = ("part", "line", "offset", "length")

TABLES = """
    CREATE TABLE pictures (
        line BIGINT, "offset" BIGINT, length BIGINT, image_id VARCHAR, sha256 VARCHAR, fault VARCHAR
    );
    CREATE TABLE texts (line BIGINT, text_id VARCHAR, caption VARCHAR, image_ids VARCHAR[], fault VARCHAR)
"""
# The first of an id that is whole is the one; a text of train that names no picture is none.
JOINED = """
    UPDATE pictures SET fault = 'image_id_repeated' WHERE fault IS NULL
        AND line NOT IN (SELECT min(line) FROM pictures WHERE fault IS NULL GROUP BY image_id);
    CREATE TABLE unlabelled AS SELECT count(*) AS number FROM texts WHERE fault IS NULL AND len(image_ids) = 0;
    UPDATE texts SET fault = 'no_image_ids' WHERE fault IS NULL AND len(image_ids) = 0 AND NOT $is_held_out;
    UPDATE texts SET fault = 'text_id_repeated' WHERE fault IS NULL
        AND line NOT IN (SELECT min(line) FROM texts WHERE fault IS NULL GROUP BY text_id);
    CREATE TABLE named AS
        SELECT named.line, position, image_id, pictures.line AS picture
        FROM (
            SELECT line, unnest(image_ids) AS image_id, generate_subscripts(image_ids, 1) AS position
            FROM texts WHERE fault IS NULL
        ) AS named LEFT JOIN (FROM pictures WHERE fault IS NULL) AS pictures USING (image_id)
"""
SIZES = """
    SELECT line, any_value(length), count(named.picture) FROM pictures
    LEFT JOIN (SELECT picture FROM named WHERE picture IS NOT NULL) AS named ON named.picture = pictures.line
    GROUP BY line ORDER BY line
"""
PICTURES = """
    SELECT number AS part, line, "offset", length, image_id, sha256, fault
    FROM pictures ASOF JOIN spans ON pictures.line >= spans.first ORDER BY part, image_id, line
"""
PAIRS = """
    SELECT number AS part, line, text_id, caption, named.image_id
    FROM named ASOF JOIN spans ON named.picture >= spans.first JOIN texts USING (line) ORDER BY part, line, position
"""
# What a part of pictures can not tell of: lines that are no text, pictures that are missing, and texts of valid and
# test that have none.
REST = """
    SELECT (row_number() OVER (ORDER BY line, position) - 1) // $part_pairs AS part, * EXCLUDE (position)
    FROM (
        SELECT line, 0 AS position, text_id, caption, NULL AS image_id, fault FROM texts WHERE fault IS NOT NULL
        UNION ALL SELECT line, position, text_id, left(caption, 200), image_id, 'image_missing'
        FROM named JOIN texts USING (line) WHERE picture IS NULL
        UNION ALL SELECT line, 0, text_id, caption, NULL, NULL
        FROM texts WHERE fault IS NULL AND $is_held_out AND line NOT IN (SELECT line FROM named WHERE picture NOTNULL)
    ) ORDER BY part, line, position
"""
COUNTS = """
    SELECT (SELECT count(*) FROM texts) AS texts, (SELECT number FROM unlabelled) AS unlabelled,
        (SELECT count(*) FROM named WHERE picture IS NOT NULL) AS pairs
"""


class Index(NamedTuple):
    """The tables of a split's pictures, pairs and all else, a part's rows together."""

    folder: Path

    def rows(self, table: str, part: int) -> list[dict[str, Any]]:
        """The part's rows of `pictures`, `pairs` or `rest`."""
        import pyarrow.parquet as pq

        found = pq.read_table(self.folder / f"{table}.parquet", filters=[("part", "=", part)])
        return found.drop_columns(["part"]).to_pylist()

    def about(self) -> dict[str, Any]:
        """How many texts, texts that name no picture and pairs there are, and the digests of the parts' rows."""
        return json.loads((self.folder / "about.json").read_text(encoding="utf-8"))


def index_of(pictures: Path, texts: Path, is_held_out: bool) -> Index:
    """The index of the two files, which is kept."""
    for file in (pictures, texts):
        next(muge_lines.lines_of(file), None)  # says what is missing
    code = [Path(__file__), Path(muge_lines.__file__)]
    limits = (PART_BYTES, PART_PICTURES, PART_PAIRS)
    key = hash_of(mark_of(pictures), mark_of(texts), hashes_of(code), is_held_out, limits)
    return Index(keep("muge", key, lambda folder: _make(folder, pictures, texts, is_held_out)))


def _make(folder: Path, pictures: Path, texts: Path, is_held_out: bool) -> None:
    """Fills the folder of the index."""
    work = folder / "work.duckdb"
    with connected(folder / "spilled", work) as database:
        database.execute(TABLES)
        _insert(database, "pictures", muge_lines.pictures_in(pictures))
        _insert(database, "texts", muge_lines.texts_in(texts))
        for statement in JOINED.split(";"):
            database.execute(statement, {"is_held_out": is_held_out} if "$" in statement else None)
        firsts = list(_firsts_of(database.sql(SIZES).to_arrow_reader(BATCH_ROWS)))
        database.execute(
            "CREATE TABLE spans AS SELECT unnest(?::BIGINT[]) AS first, unnest(range(?)) AS number",
            [firsts, len(firsts)],
        )
        of_rest = {"part_pairs": PART_PAIRS, "is_held_out": is_held_out}
        digests = {
            table: _write(database.sql(query, params=values).to_arrow_reader(BATCH_ROWS), folder / f"{table}.parquet")
            for table, query, values in (("pictures", PICTURES, None), ("pairs", PAIRS, None), ("rest", REST, of_rest))
        }
        (counts,) = database.sql(COUNTS).to_arrow_table().to_pylist()
    work.unlink()
    of_pictures = [digest + digests["pairs"].get(part, "") for part, digest in digests["pictures"].items()]
    about = counts | {"digests": {"pictures": of_pictures, "rest": list(digests["rest"].values())}}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _insert(database: "DuckDBPyConnection", table: str, rows: Iterable[tuple]) -> None:
    import pyarrow as pa

    schema = database.table(table).limit(0).to_arrow_table().schema
    for some in _batches_of(rows):
        columns = [pa.array(column, field.type) for column, field in zip(zip(*some, strict=True), schema, strict=True)]
        batch = database.from_arrow(pa.table(columns, schema=schema))
        batch.insert_into(table)


def _batches_of(rows: Iterable[tuple]) -> Iterator[list[tuple]]:
    some, size = [], 0
    for row in rows:
        some.append(row)
        size += sum(len(cell) for cell in row if isinstance(cell, str | tuple))
        if len(some) == BATCH_ROWS or size > BATCH_SIZE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _firsts_of(sizes: "pa.RecordBatchReader") -> Iterator[int]:
    """The line that each part begins with; `sizes` has of each picture its line, length of base64 and number of pairs.

    Where a part ends is decided by what is before, so that a line more at a file's end moves no other part.
    """
    num_bytes = num_pictures = num_pairs = 0
    rows = (row for batch in sizes for row in zip(*(column.to_pylist() for column in batch.columns), strict=True))
    for line, length, pairs in rows:
        is_full = num_bytes + length > PART_BYTES * 4 // 3 or num_pairs + pairs > PART_PAIRS
        if not num_pictures or is_full or num_pictures == PART_PICTURES:
            yield line
            num_bytes = num_pictures = num_pairs = 0
        num_bytes, num_pictures, num_pairs = num_bytes + length, num_pictures + 1, num_pairs + pairs


def _write(batches: "pa.RecordBatchReader", file: Path) -> dict[int, str]:
    """Writes the table; gives for each part the digest of its rows, without the places of good ones in a file."""
    import pyarrow.parquet as pq

    hashes = defaultdict(sha256)
    with pq.ParquetWriter(file, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            for row in batch.to_pylist():
                place = row["line"] if row.get("fault") else None
                said = [value for name, value in row.items() if name not in WHERE]
                hashes[row["part"]].update(json.dumps([place, *said]).encode())
    return {part: found.hexdigest() for part, found in hashes.items()}
