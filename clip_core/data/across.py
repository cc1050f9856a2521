"""What only all shards together can tell: ids that a later shard repeats, duplicates, pictures of several splits."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from clip_core.data.tables import add_view, connected

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

# Hashes are a tenth of the strings: they find the few candidates, which are then compared themselves.
REPEATED_PAIRS = """
    WITH candidates AS (
        SELECT hash(pair_id) AS hashed FROM pairs WHERE pair_id <> '' GROUP BY hashed HAVING min(shard) < max(shard)
    ), found AS (SELECT * FROM pairs WHERE hash(pair_id) IN (FROM candidates) AND pair_id <> '')
    SELECT shard, row, 'pair_is_new' AS reason
    FROM (SELECT shard, row, min(shard) OVER (PARTITION BY pair_id) AS first FROM found) WHERE shard > first
"""
OTHER_PICTURES = """
    WITH candidates AS (
        SELECT hash(image_id) AS hashed FROM pairs WHERE image_id <> ''
        GROUP BY hashed HAVING min(shard) < max(shard) AND min(image_sha256) < max(image_sha256)
    ), found AS (SELECT * FROM pairs WHERE hash(image_id) IN (FROM candidates)),
    firsts AS (
        SELECT image_id, min(shard) AS shard, arg_min(image_sha256, (shard, row)) AS sha256 FROM found GROUP BY image_id
    )
    SELECT found.shard, found.row, 'picture_is_one' AS reason FROM found JOIN firsts USING (image_id)
    WHERE found.shard > firsts.shard AND found.image_sha256 IS DISTINCT FROM firsts.sha256
"""
KEY_FACTS = """
    WITH captions AS (
        SELECT count(*) AS rows FROM pairs WHERE caption IS NOT NULL GROUP BY hash(caption)
    ), pictures AS (
        SELECT count(DISTINCT image_id) AS ids, count(DISTINCT split) AS splits
        FROM pairs WHERE image_sha256 IS NOT NULL GROUP BY image_sha256
    )
    SELECT (SELECT coalesce(sum(rows), 0)::BIGINT FROM captions), (SELECT count(*) FROM captions),
        coalesce(sum(ids), 0)::BIGINT, count(*), count(*) FILTER (splits > 1) FROM pictures
"""
TEXTS_GONE = """
    SELECT count(*) FROM (
        SELECT text_id FROM read_parquet(?) WHERE split IN ('valid', 'test') AND text_id IS NOT NULL
        EXCEPT SELECT text_id FROM read_parquet(?) WHERE split IN ('valid', 'test')
    )
"""


@dataclass(frozen=True)
class KeyFacts:
    """How many captions and pictures there are, and how many are left without their duplicates."""

    captions: int
    distinct_captions: int
    pictures: int
    distinct_pictures: int  # by their bytes
    pictures_in_several_splits: int  # of the distinct ones


def duplicates_across(shards: Sequence[Path]) -> "pd.DataFrame":
    """The rows (shard, row from 0, reason) whose pair_id an earlier shard has, or whose image_id with other bytes.

    `shards` are the pair tables, earlier ones first; what repeats within one of them is not looked for.
    """
    import pandas as pd

    names = [path.stem.removeprefix("pairs-") for path in shards]
    assert len(set(names)) == len(names), "two shards have one name"
    with _opened(shards) as database:
        found = database.sql(f"{REPEATED_PAIRS} UNION ALL ({OTHER_PICTURES}) ORDER BY ALL").fetchall()
    rows = [(names[shard], row, reason) for shard, row, reason in found]
    return pd.DataFrame(rows, columns=["shard", "row", "reason"])


def rows_by_rule(repeated: "pd.DataFrame", shard: str) -> dict[str, list[int]]:
    """The rows of one shard from `duplicates_across`, by the rule that they break."""
    rows = repeated[repeated["shard"] == shard]
    return {str(rule): of_rule.tolist() for rule, of_rule in rows.groupby("reason")["row"]}


def key_facts(shards: Sequence[Path]) -> KeyFacts:
    """Counts duplicates among the pair tables `shards`, which hold what was kept."""
    with _opened(shards) as database:
        (numbers,) = database.sql(KEY_FACTS).fetchall()
    return KeyFacts(*numbers)


def num_texts_gone(read: Sequence[Path], kept: Sequence[Path]) -> int:
    """How many texts of valid and test the pair tables `read` have and the `kept` ones have not."""
    with _connected() as database:
        (number,) = database.execute(TEXTS_GONE, [_names(read), _names(kept)]).fetchall()[0]
    return number


@contextmanager
def _opened(shards: Sequence[Path]) -> Generator["duckdb.DuckDBPyConnection"]:
    """A database whose view `pairs` has all rows of the shards, with the shard's position and the row's in it."""
    with _connected() as database:
        add_view(database, "pairs", shards)
        yield database


@contextmanager
def _connected() -> Generator["duckdb.DuckDBPyConnection"]:
    with TemporaryDirectory() as aside, connected(Path(aside)) as database:
        yield database


def _names(files: Sequence[Path]) -> list[str]:
    return [str(file) for file in files]
