"""The captions of training pictures: sentences as they are, others drawn from what is known of the picture."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from clip_core.config.training import CaptionMix, Captions

if TYPE_CHECKING:
    import pandas as pd

    from clip_core.data.store import Store

MARKS = {"zh": ("\N{FULLWIDTH COMMA}", "\N{FULLWIDTH COLON}"), "en": (", ", ": ")}
MAX_KEYWORDS = 3


@dataclass
class Described:
    """What is known of one picture without sentences, in one language."""

    names: list[str] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)
    group: str | None = None


def describe(pairs: "pd.DataFrame") -> dict[int, Described]:
    """What these pairs, names and keywords in one language, say of each picture by its `image_index`."""
    by_image: defaultdict[int, Described] = defaultdict(Described)
    columns = ("image_index", "caption_kind", "caption", "group")
    for image, kind, caption, group in zip(*(pairs[column].tolist() for column in columns), strict=True):
        described = by_image[image]
        {"name": described.names, "keyword": described.keywords}[kind].append(caption)
        described.group = group
    return by_image


def draw_caption(described: str | Described, params: Captions, random: np.random.Generator) -> str:
    """One caption of the picture: a sentence as it is, else made of name, keywords and group as `params` says."""
    if isinstance(described, str):
        return described
    comma, colon = MARKS[params.language]
    kind = _draw_kind(params.mix, random)
    name = _any(described.names or described.keywords, random)
    if kind == "group_and_name" and described.group:
        return f"{described.group}{colon}{name}"
    if kind == "keywords" and described.keywords:
        return comma.join(_some(described.keywords, MAX_KEYWORDS, random))
    if kind == "name_and_keywords" and described.keywords:
        return comma.join([name, *_some(described.keywords, MAX_KEYWORDS - 1, random)])
    return _any(params.templates, random).replace("{}", name)


def texts_of(pairs: "pd.DataFrame", params: Captions) -> Iterator[str]:
    """Every text that a training caption can be made of, for the tokenizer's vocabulary."""
    rows = pairs[pairs["language"] == params.language]
    yield from rows["caption"].unique()
    yield from rows["group"].dropna().unique()
    yield from (template.replace("{}", " ") for template in params.templates)
    yield from MARKS[params.language]


def texts_of_store(store: "Store", params: Captions) -> Iterator[str]:
    """`texts_of` the store's pairs, a shard's in memory at a time."""
    for shard in range(len(store.manifest["shards"])):
        yield from texts_of(store.pairs_of([shard], ("language", "caption", "group")), params)


def _draw_kind(mix: CaptionMix, random: np.random.Generator) -> str:
    point = random.random()
    for kind, share in mix:
        point -= share
        if point < 0:
            return kind
    return "templated_name"


def _any(texts: list[str] | tuple[str, ...], random: np.random.Generator) -> str:
    return texts[random.integers(len(texts))]


def _some(texts: list[str], at_most: int, random: np.random.Generator) -> list[str]:
    count = min(random.integers(1, at_most + 1), len(texts))
    return [texts[i] for i in random.permutation(len(texts))[:count]]
