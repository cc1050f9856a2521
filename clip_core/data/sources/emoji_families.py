"""Families of near-duplicate concepts, and the split that a family falls into."""

import re
import tomllib
from functools import cache
from pathlib import Path

from clip_core.data.sources import split

TABLE = Path(__file__).with_name("emoji_families.toml")
PERSON = re.compile(r"^(man|woman|men|women|person|people)\b:? ?")
DIRECTION = re.compile(r": facing right$")
# Another salt is another split of the concepts. Of sixty, this one spreads the groups evenly and leaves the family
# "family" in train: some artworks draw its thirty concepts alike. Chosen before any model was trained.
SALT = "concepts-22"


def family_of(subgroup: str, en_name: str) -> str:
    """The family of a concept: that of the first row of the table that fits, else its bare English name."""
    for family, in_subgroup, in_name in rules():
        if in_subgroup.search(subgroup) and in_name.search(en_name):
            return family
    return PERSON.sub("", DIRECTION.sub("", en_name)) or en_name


def split_of(family: str, unseen_percent: int) -> str:
    """The split that alone may hold the family's concepts, or `train` for a family that is seen in training."""
    return split.split_of(f"{SALT}/{family}", unseen_percent, unseen_percent)


@cache
def rules() -> list[tuple[str, re.Pattern, re.Pattern]]:
    """The committed table: family, pattern of the subgroup, pattern of the English name."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["families"]
    return [(family, re.compile(subgroup), re.compile(name)) for family, subgroup, name in rows]
