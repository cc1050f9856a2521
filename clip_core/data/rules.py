"""The rules of curation: each a query for the training rows that leave, with the picture that stays instead, if any.

The tables are those of key_tables.py; `train` holds the rows of train that no rule before has taken.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from clip_core.config.curation import Rules
from clip_core.config.section import Section

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TRAIN = """
CREATE TEMP VIEW train AS
SELECT rows.*, representative, held_out FROM rows JOIN pictures USING (picture)
WHERE split = 'train' AND reason IS NULL
"""
QUERIES = {  # in the order in which they are asked; $value: that of params, or its parts
    "language": "SELECT place, NULL FROM train WHERE NOT list_contains($value, language)",
    "caption_length": "SELECT place, NULL FROM train WHERE length NOT BETWEEN $least AND $most",
    "aspect": "SELECT place, NULL FROM train WHERE aspect > $value",
    "pattern": "SELECT place, NULL FROM train WHERE advertises",
    "blacklist": "SELECT place, NULL FROM train WHERE blacklisted",
    # the picture's bytes and the caption of an earlier row
    "exact_duplicate": """
        SELECT place, first(picture) OVER same FROM train
        WINDOW same AS (PARTITION BY bytes, text ORDER BY place)
        QUALIFY row_number() OVER same > 1""",
    # the caption of an earlier row and a picture that looks the same but has other bytes
    "near_duplicate": """
        SELECT place, first(picture) OVER alike FROM train
        WINDOW alike AS (PARTITION BY representative, text ORDER BY place),
            same AS (PARTITION BY bytes, text ORDER BY place)
        QUALIFY row_number() OVER alike > 1 AND row_number() OVER same = 1""",
    # a picture that looks like one of valid or test, whatever the captions say
    "leakage": "SELECT place, held_out FROM train WHERE held_out IS NOT NULL",
    "score": "SELECT place, NULL FROM train JOIN scores USING (place) WHERE NOT score >= $least",
    # of those that have too much in common, the first by a hash: neither the source's order nor a new shard decides
    "pairs_per_caption": """
        SELECT place, NULL FROM train
        QUALIFY row_number() OVER (PARTITION BY caption ORDER BY pair, place) > $value""",
    "pairs_per_picture": """
        SELECT place, NULL FROM train
        QUALIFY row_number() OVER (PARTITION BY picture ORDER BY pair, place) > $value""",
}
LEAVE = """
UPDATE rows SET reason = $reason, instead = leaving.instead
FROM ({query}) AS leaving(place, instead) WHERE rows.place = leaving.place
"""


def apply_rules(db: "DuckDBPyConnection", rules: Rules, score: Callable[[], None]) -> dict[str, int | None]:
    """Notes in `rows` why rows leave, and returns how many each rule takes, null where it is off.

    `score` is called once the rules before have spoken, if scores are asked: it fills the table `scores`.
    """
    db.execute(TRAIN)
    counts: dict[str, int | None] = {}
    for name, query in QUERIES.items():
        value = getattr(rules, name)
        if value is None or value is False:
            counts[name] = None
            continue
        if name == "score":
            score()
        values = value.model_dump() if isinstance(value, Section) else {"value": value}
        asked = {key: part for key, part in values.items() if f"${key}" in query}
        counts[name] = db.execute(LEAVE.format(query=query), {"reason": name} | asked).fetchall()[0][0]
    return counts
