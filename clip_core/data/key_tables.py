"""What curation needs of all shards, as narrow tables in DuckDB, which puts on disk what memory does not hold.

- `pictures`: a row a picture: `picture` (its number in `facts`, of which it is the first), `place`, `image_id`, and
  what its look tells: `representative`, the number of its near-duplicate group's, and `held_out`, that of a picture of
  valid or test which it resembles, or null.
- `rows`: a row of the pair tables: `place`, `split`, `picture`; keys that are equal where values are (`pair`,
  `caption`, `text`, `concept`, and `bytes` of the picture); what the rules ask (`language`, `length`, `aspect`,
  `advertises`, `blacklisted`); and their answer: the `reason` to leave, or null, and the picture that stays `instead`.
- `pairs` and `facts`: views of the files of data/valid.

A place is the number of a shard times PLACES, and the row in its file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip_core.data.near import SIDE, Looks, quarters_of
from clip_core.data.pairs import shards_in
from clip_core.data.tables import add_view, connected, quoted
from clip_core.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PLACES = 2**32
ROWS_AT_ONCE = 4096
# What makes two captions the same. Concepts that an artwork draws alike may share a keyword and are no duplicates.
TEXT = "caption, coalesce(language, ''), coalesce(concept_id, '')"
# A picture of valid or test may lie in several shards.
PICTURES = """
CREATE TABLE pictures AS
FROM (SELECT row_number() OVER (ORDER BY place) - 1 AS picture, place, image_id FROM facts)
QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY place) = 1
"""
ROWS = """
CREATE TABLE rows AS
SELECT pairs.place, split, picture, md5_number(pair_id) AS pair, md5_number(image_sha256) AS bytes,
    md5_number(caption) AS caption, md5_number(concat_ws(chr(0), {text})) AS text, md5_number(concept_id) AS concept,
    language, length(caption) AS length, greatest(width, height) / least(width, height) AS aspect,
    {advertises} AS advertises, {blacklisted} AS blacklisted, NULL::VARCHAR AS reason, NULL::BIGINT AS instead
FROM pairs LEFT JOIN pictures USING (image_id) ORDER BY pairs.place
"""
SPLITS = """
SELECT picture, bool_or(split = 'train') AS train, bool_or(split = 'valid') AS valid, bool_or(split = 'test') AS test
FROM rows WHERE picture IS NOT NULL GROUP BY picture
"""


def open_tables(
    valid: Path, folder: Path, patterns: Sequence[str] | None, words: Sequence[str] | None
) -> "DuckDBPyConnection":
    """A database in `folder` with the tables of all shards; `look_at_pictures` adds what looks tell."""
    import duckdb

    db = connected(folder / "spilled", folder / "keys.duckdb")
    for kind in ("pairs", "facts"):
        add_view(db, f"all_{kind}", [valid / f"{kind}-{shard}.parquet" for shard in shards_in(valid)])
        db.execute(f"CREATE TEMP VIEW {kind} AS SELECT *, shard * {PLACES} + row AS place FROM all_{kind}")
    db.execute(PICTURES)
    asks = {"advertises": _any_matches(patterns), "blacklisted": _any_matches(words, "\\Q{}\\E")}
    try:
        db.execute(ROWS.format(text=TEXT, **asks))
    except duckdb.InvalidInputException as error:
        raise UserError(f"curate.rules.pattern: {error}; the patterns are RE2's, without look-around") from None
    return db


def _any_matches(patterns: Sequence[str] | None, form: str = "(?:{})", at_once: int = 500) -> str:
    """The question whether a caption matches any; some hundreds at once cost one of them little more than one."""
    alternatives = [form.format(pattern) for pattern in patterns or ()]
    joined = ["|".join(alternatives[i : i + at_once]) for i in range(0, len(alternatives), at_once)]
    return " OR ".join(f"regexp_matches(caption, {quoted(pattern)})" for pattern in joined) or "false"


def look_at_pictures(db: "DuckDBPyConnection", files: Sequence[Path], folder: Path, distance: int) -> int:
    """Adds to `pictures` what looks tell, and returns how many pictures of test resemble one of valid.

    The thumbnails lie in a file in `folder`, of which memory holds what is compared.
    """
    import pyarrow as pa

    hashes = _column(db, "SELECT difference_hash FROM facts ORDER BY place")
    order = _column(db, "SELECT picture FROM pictures ORDER BY image_id")
    quarters = write_thumbnails(files, folder / "thumbnails")
    thumbnails = np.memmap(folder / "thumbnails", np.uint8, "r", shape=(len(hashes), SIDE * SIDE * 3))
    looks = Looks(hashes, quarters, thumbnails, distance)
    splits = {name: np.zeros(len(hashes), dtype=bool) for name in ("train", "valid", "test")}
    known = db.execute(SPLITS).fetchnumpy()
    for name, holds in splits.items():
        holds[known["picture"]] = known[name]
    held_out = looks.first_alike(order[(splits["valid"] | splits["test"])[order]], splits["train"])
    found = pa.table({"picture": np.arange(len(hashes)), "representative": looks.leaders(order), "held_out": held_out})
    db.register("found", found)
    db.execute("ALTER TABLE pictures ADD COLUMN representative BIGINT; ALTER TABLE pictures ADD COLUMN held_out BIGINT")
    db.execute(
        "UPDATE pictures SET representative = found.representative, held_out = nullif(found.held_out, -1) "
        "FROM found WHERE pictures.picture = found.picture"
    )
    db.unregister("found")
    return int((looks.first_alike(order[splits["valid"][order]], splits["test"]) >= 0).sum())


def write_thumbnails(files: Sequence[Path], to: Path) -> np.ndarray:
    """Writes the thumbnails of all pictures one behind the other, and returns the sums over their quarters."""
    import pyarrow.parquet as pq

    quarters = [np.empty((0, 12), dtype=np.int16)]
    with to.open("wb") as out:
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=["thumbnail"]):
                    data = b"".join(batch["thumbnail"].to_pylist())
                    out.write(data)
                    quarters.append(quarters_of(np.frombuffer(data, np.uint8)))
    return np.concatenate(quarters)


def _column(db: "DuckDBPyConnection", query: str) -> np.ndarray:
    (column,) = db.execute(query).fetchnumpy().values()
    return np.asarray(column)
