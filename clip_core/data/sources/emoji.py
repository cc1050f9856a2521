"""The built-in source: emoji of eight artworks with Chinese and English names, from the cache that set-up fills."""

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.config.sources import EmojiSource
from clip_core.data.pairs import ORIGIN
from clip_core.data.sources import Harvest, Part, split
from clip_core.data.sources.drawn_cache import licences_in
from clip_core.data.sources.emoji_families import family_of, split_of
from clip_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

GROUPS = {  # emojibase's group -> its Chinese name; CLDR's own are poor ("people with charm" for fantasy)
    0: "表情与情感",
    1: "人物与身体",
    3: "动物与自然",
    4: "食物与饮料",
    5: "旅行与地点",
    6: "活动",
    7: "物品",
    8: "符号",
}
SALT = "words"  # another salt chooses other words; of a tenth by this one no caption template of params.yaml says any


def parts_of(data: EmojiSource) -> list[Part]:
    """One: all of it fits into memory."""
    return [Part("emoji", (Path(data.path) / "manifest.json",))]


def harvest(data: EmojiSource, _part: Part) -> Harvest:
    """Every artwork's pictures with their names and keywords.

    The train artworks show the concepts of training; the artworks of valid and test show these too (seen concepts in an
    unseen style) and, each, concepts of their own (unseen). Training has no caption that says an unseen word.
    """
    import pandas as pd

    cache = Path(data.path)
    licences = licences_of(cache, (*data.train_artworks, data.valid_artwork, data.test_artwork))
    concepts = pd.read_parquet(cache / "concepts.parquet")
    concepts["family"] = [family_of(*row) for row in zip(concepts["subgroup"], concepts["en_name"], strict=True)]
    concepts["side"] = [split_of(family, data.unseen_percent) for family in concepts["family"]]
    pictures = pd.read_parquet(cache / "pictures.parquet", columns=["artwork", "hexcode"])
    split_of_artwork = dict.fromkeys(data.train_artworks, "train")
    split_of_artwork |= {data.valid_artwork: "valid", data.test_artwork: "test"}
    pictures["split"] = pictures["artwork"].map(split_of_artwork)
    pictures = pictures.merge(concepts[["hexcode", "family", "group", "side"]], on="hexcode")
    pictures = pictures[(pictures["side"] == "train") | (pictures["side"] == pictures["split"])].dropna(subset="split")
    pictures["image_id"] = pictures["artwork"] + "-" + pictures["hexcode"]
    pictures["group"] = pictures["group"].map(GROUPS)
    pictures["licence"] = pictures["artwork"].map(licences)
    drawn = pictures.drop_duplicates("hexcode")
    words = unseen_words(concepts, data.unseen_word_percent)
    captions = pd.DataFrame(captions_of(concepts, words))
    says_one = {text for text in captions["caption"].unique() if any(word.lower() in text.lower() for word in words)}
    pairs = pictures.merge(captions, on="hexcode")
    pairs = pairs[(pairs["split"] != "train") | ~pairs["caption"].isin(says_one)]
    pairs["pair_id"] = pairs["image_id"] + "/" + pairs["text_id"]
    pairs["source"] = "emoji/" + pairs["artwork"]
    pairs = pairs.rename(columns={"hexcode": "concept_id"}).drop(columns=["artwork", "side"])
    return Harvest(
        pairs=pairs,
        images=read_pictures(cache, set(pictures["image_id"])),
        rejected=pd.DataFrame(columns=list(ORIGIN)),
        more={
            "concepts": dict(sorted(Counter(drawn["side"]).items())),
            "concepts_not_drawn": len(concepts) - len(drawn),  # unseen ones that the artwork of their split lacks
            "families": drawn["family"].nunique(),
        },
    )


def licences_of(cache: Path, artworks: tuple[str, ...]) -> dict[str, str]:
    """Each artwork's licence; refuses a cache that is missing, damaged or lacks one of `artworks`."""
    licences = licences_in(cache)
    for artwork in artworks:
        if artwork not in licences:
            known = ", ".join(licences)
            raise UserError(f"params.yaml: data names the artwork {artwork!r}, which is not among {known}")
    return licences


def unseen_words(concepts: "pd.DataFrame", percent: int) -> set[str]:
    """So many of the Chinese keywords that neither a name nor a group says, by a hash: new pictures move none."""
    said = "\n".join([*concepts["zh_name"], *concepts["en_name"], *GROUPS.values()]).lower()
    keywords = {keyword for some in concepts["zh_keywords"] for keyword in some if keyword.lower() not in said}
    return {keyword for keyword in keywords if split.split_of(f"{SALT}/{keyword}", 0, percent) == "test"}


def captions_of(concepts: "pd.DataFrame", words: set[str]) -> Iterator[dict[str, str]]:
    """Each concept's names and keywords in both languages, with `words` told apart; none that repeats the name."""
    for concept in concepts.to_dict("records"):
        for language in ("zh", "en"):
            name = concept[f"{language}_name"]
            row = {"hexcode": concept["hexcode"], "language": language}
            yield row | {"caption": name, "caption_kind": "name", "text_id": f"{language}-name-{concept['hexcode']}"}
            for keyword in dict.fromkeys(concept[f"{language}_keywords"]):
                if keyword != name:
                    text_id = f"{language}-keyword-{sha256(keyword.encode()).hexdigest()[:12]}"
                    kind = "unseen_word" if keyword in words else "keyword"
                    yield row | {"caption": keyword, "caption_kind": kind, "text_id": text_id}


def read_pictures(cache: Path, image_ids: set[str]) -> Iterator[tuple[str, bytes]]:
    """The wanted pictures (id, PNG bytes), in the order of their ids."""
    import pyarrow.parquet as pq

    rows = pq.read_table(cache / "pictures.parquet").to_pylist()  # 23 MB in all
    images = {f"{row['artwork']}-{row['hexcode']}": row["image"] for row in rows}
    yield from ((image_id, images[image_id]) for image_id in sorted(image_ids))
