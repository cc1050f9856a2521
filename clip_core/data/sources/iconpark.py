"""A built-in source whose names were written in Chinese: the icons of IconPark, from the cache that set-up fills."""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.config.sources import IconparkSource
from clip_core.data.pairs import ORIGIN
from clip_core.data.sources import Harvest, Part
from clip_core.data.sources.drawn_cache import licences_in
from clip_core.data.sources.split import split_of

if TYPE_CHECKING:
    import pandas as pd

CHINESE = re.compile(r"[\u3400-\u9fff]")
COPY = re.compile(r"[\s_-]*\d+$")  # "download 2" is "download", drawn once more


def parts_of(data: IconparkSource) -> list[Part]:
    """One: all of it fits into memory."""
    return [Part("iconpark", (Path(data.path) / "manifest.json",))]


def harvest(data: IconparkSource, _part: Part) -> Harvest:
    """The icons in every style, each with its title and tags. Several icons may have one title, which is a concept.

    All pictures of a title are in one split, and so are titles that differ in a number at their end.
    """
    import pandas as pd

    cache = Path(data.path)
    licences = licences_in(cache)
    icons = pd.read_parquet(cache / "concepts.parquet")
    icons["family"] = [family_of(title) for title in icons["title"]]
    # by the family alone, so that a larger share moves nothing out of test
    percents = data.valid_percent or 0, data.test_percent or 0
    icons["split"] = [split_of(family, *percents) for family in icons["family"]]
    drawn = pd.read_parquet(cache / "pictures.parquet", columns=["artwork", "name"])
    drawn["image_id"] = drawn["artwork"] + "/" + drawn["name"]
    drawn["licence"] = drawn["artwork"].map(licences)
    drawn["source"] = "iconpark/" + drawn["artwork"]
    about = icons.rename(columns={"title": "concept_id"}).drop(columns="tags")
    pairs = drawn.merge(about, on="name").merge(pd.DataFrame(captions_of(icons)), on="name")
    pairs["pair_id"] = pairs["image_id"] + "/" + pairs["text_id"]
    return Harvest(
        pairs=pairs.drop(columns=["artwork", "name"]),
        images=read_pictures(cache),
        rejected=pd.DataFrame(columns=list(ORIGIN)),
        more={"icons": len(icons), "titles": icons["title"].nunique()},
    )


def family_of(title: str) -> str:
    """The title without the number that its makers put behind drawings of the same thing."""
    title = title.casefold()
    return COPY.sub("", title) or title


def captions_of(icons: "pd.DataFrame") -> Iterator[dict[str, str]]:
    """Each icon's title and tags; a tag that repeats the title is left out."""
    for name, title, tags in zip(icons["name"], icons["title"], icons["tags"], strict=True):
        for caption in dict.fromkeys([title, *tags]):
            language = "zh" if CHINESE.search(caption) else "en"  # names of products and keys, and a few words
            kind = "name" if caption == title else "keyword"
            text_id = f"{language}-{kind}-{sha256(caption.encode()).hexdigest()[:12]}"
            yield {
                "name": name,
                "caption": caption,
                "language": language,
                "caption_kind": kind,
                "text_id": text_id,
            }


def read_pictures(cache: Path) -> Iterator[tuple[str, bytes]]:
    """All pictures (id, PNG bytes), in the order of their ids."""
    import pyarrow.parquet as pq

    rows = pq.read_table(cache / "pictures.parquet").to_pylist()  # 10 MB in all
    yield from sorted((f"{row['artwork']}/{row['name']}", row["image"]) for row in rows)
