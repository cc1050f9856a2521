"""Curation: training pairs leave by rules, each counted; valid and test lose nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from clip_core.config.curation import Curate
from clip_core.data.key_tables import PLACES, look_at_pictures, open_tables
from clip_core.data.pairs import COLUMNS, CURATED, ORIGIN, schema_of, shards_in, write_counts
from clip_core.data.rules import apply_rules
from clip_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection

    Scores = Callable[[str, pd.DataFrame], np.ndarray]  # of some pairs of a shard

ADVERTISING = Path(__file__).parent / "advertising.txt"
NUM_EXAMPLES = 5
OUTCOMES = """
CREATE TABLE outcomes AS
SELECT rows.place, reason, concept IS NULL OR concept IN (SELECT concept FROM train) AS seen,
    representatives.image_id AS near_duplicate_group
FROM rows LEFT JOIN pictures USING (picture)
LEFT JOIN pictures AS representatives ON pictures.representative = representatives.picture ORDER BY rows.place
"""
EXAMPLES = f"""
SELECT chosen.reason, pairs.caption, (pairs.place // {PLACES}, pairs.image_id),
    (pictures.place // {PLACES}, pictures.image_id)
FROM (FROM rows WHERE reason IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY reason ORDER BY place) <= {NUM_EXAMPLES}) AS chosen
JOIN pairs USING (place) LEFT JOIN pictures ON pictures.picture = instead ORDER BY place
"""
OVERLAP = """
SELECT count(DISTINCT caption) FROM rows
WHERE split = 'test' AND caption IN (SELECT caption FROM rows WHERE split = 'valid' AND caption IS NOT NULL)
"""


@dataclass(frozen=True)
class Example:
    """A pair that left."""

    reason: str
    caption: str
    pictures: list[tuple[str, str]]  # shard and image_id: its own, and the one that stays instead, if there is one


@dataclass(frozen=True)
class Curated:
    """What curation did."""

    read: int
    train: int  # of the rows read
    kept: int
    rules: dict[str, int | None]  # how many rows left under each; null: off
    examples: list[Example]
    overlap: dict[str, int]  # pictures of test that resemble one of valid, captions that are in both


def curate(params: Curate, valid: Path, out: Path, quarantine: Path, scores: "Scores | None") -> Curated:
    """Writes the rows that stay to `out` and the others to `quarantine`, a file a shard in each.

    `scores` gives the scores of some pairs of a shard, if the rules ask for them. What memory does not hold lies in
    `out` meanwhile, which a stage that is killed does not leave behind.
    """
    shards = shards_in(valid)
    with (
        TemporaryDirectory(dir=out) as folder,
        open_tables(valid, Path(folder), patterns_of(params), words_of(params)) as db,
    ):
        facts = [valid / f"facts-{shard}.parquet" for shard in shards]
        alike = look_at_pictures(db, facts, Path(folder), params.near_duplicate_distance)

        def score() -> None:
            assert scores, "nobody gives scores"
            _write_scores(db, valid, shards, scores)

        rules = apply_rules(db, params.rules, score)
        db.execute(OUTCOMES)
        kept = sum(
            _write_shard(db, valid / f"pairs-{shard}.parquet", number, out, quarantine)
            for number, shard in enumerate(shards)
        )
        read, train = db.execute("SELECT count(*), count(*) FILTER (split = 'train') FROM rows").fetchall()[0]
        examples = [
            Example(reason, caption, [(shards[shard], image_id) for shard, image_id in pictures if image_id])
            for reason, caption, *pictures in db.execute(EXAMPLES).fetchall()
        ]
        overlap = {"pictures": alike, "captions": db.execute(OVERLAP).fetchall()[0][0]}
        groups, pictures = db.execute("SELECT count(DISTINCT representative), count(*) FROM pictures").fetchall()[0]
    write_counts(
        out,
        read,
        kept,
        {name: number for name, number in rules.items() if number},
        rules=rules,
        pictures={"all": pictures, "near_duplicate_groups": groups},
        in_both_valid_and_test=overlap,
    )
    return Curated(read, train, kept, rules, examples, overlap)


def patterns_of(params: Curate) -> Sequence[str] | None:
    """The regular expressions of the rule `pattern`."""
    if params.rules.pattern == "default":
        return ADVERTISING.read_text(encoding="utf-8").splitlines()
    return params.rules.pattern


def words_of(params: Curate) -> list[str] | None:
    """The words of the blacklist."""
    if params.rules.blacklist is None:
        return None
    path = Path(params.path, params.rules.blacklist)
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"curate.rules.blacklist: {path}: {error.strerror}; put the file there, or null") from None
    except UnicodeDecodeError as error:
        raise UserError(f"curate.rules.blacklist: {path}: byte {error.start} is no UTF-8; save it as UTF-8") from None
    return [word for word in words if word]


def _write_scores(db: "DuckDBPyConnection", valid: Path, shards: Sequence[str], scores: "Scores") -> None:
    import pandas as pd
    import pyarrow.parquet as pq

    db.execute("CREATE TABLE scores (place BIGINT, score DOUBLE)")
    for number, shard in enumerate(shards):
        asked = "SELECT place FROM train WHERE place // $1 = $2 ORDER BY place"
        places = np.asarray(db.execute(asked, [PLACES, number]).fetchnumpy()["place"])
        pairs = pq.read_table(valid / f"pairs-{shard}.parquet").take(places % PLACES).to_pandas()
        db.append("scores", pd.DataFrame({"place": places, "score": scores(shard, pairs).astype(np.float64)}))
        print(f"curate: {number + 1} of {len(shards)} shards scored", flush=True)


def _write_shard(db: "DuckDBPyConnection", pairs: Path, number: int, out: Path, quarantine: Path) -> int:
    """Writes one shard's rows, and returns how many stay."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = number * PLACES
    asked = "SELECT * EXCLUDE place FROM outcomes WHERE place >= $1 AND place < $2 ORDER BY place"
    outcomes = db.sql(asked, params=[first, first + PLACES]).to_arrow_table()
    rows = pq.read_table(pairs, schema=schema_of(COLUMNS))
    assert len(outcomes) == len(rows), f"{pairs}: {len(rows)} rows, {len(outcomes)} outcomes: pictures with equal ids"
    reason = outcomes["reason"]
    stays = reason.is_null()
    more = outcomes.append_column("line", pa.array(np.arange(1, len(rows) + 1)))
    more = more.append_column("file", pa.repeat(str(pairs), len(rows)))
    for name in more.column_names:
        rows = rows.append_column(name, more[name])
    kept = rows.filter(stays).select([*COLUMNS, *CURATED])
    pq.write_table(kept, out / pairs.name)
    rejected = rows.filter(reason.is_valid()).select([*ORIGIN, *COLUMNS])
    pq.write_table(rejected, quarantine / pairs.name.replace("pairs-", "rejected-"))
    return len(kept)
