"""The captions of each training picture, and drawing one of them."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from clip_core.config.training import CaptionMix, Captions
from clip_core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

MARKS = {"zh": ("\N{FULLWIDTH COMMA}", "\N{FULLWIDTH COLON}"), "en": (", ", ": ")}
MAX_KEYWORDS = 3


@dataclass
class Described:
    """What is known of one picture, in one language."""

    captions: list[str] = field(default_factory=list)  # sentences, used as they are
    names: list[str] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)
    group: str | None = None

    @property
    def num_captions(self) -> int:
        return len(self.captions) + len(self.names) + len(self.keywords)


def describe(pairs: "pd.DataFrame", image_ids: list[str], language: str) -> dict[int, Described]:
    """What the pair table says in `language` of each picture (by its place in `image_ids`) that has captions in it."""
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    rows = pairs[(pairs["language"] == language) & pairs["image_id"].notna()].sort_values("pair_id")
    by_image: defaultdict[int, Described] = defaultdict(Described)
    columns = ("image_id", "caption_kind", "caption", "group")
    for image_id, kind, caption, group in zip(*(rows[column] for column in columns), strict=True):
        described = by_image[place[image_id]]
        {"caption": described.captions, "name": described.names, "keyword": described.keywords}[kind].append(caption)
        described.group = group
    if not by_image:
        raise UserError(
            f"the training pictures have no captions in language {language!r}: set `captions.language` of this "
            f"training to one of {sorted(pairs['language'].unique())}"
        )
    return dict(sorted(by_image.items()))


def draw_caption(described: Described, params: Captions, random: np.random.Generator) -> str:
    """One caption of the picture: a sentence as it is, else made of name, keywords and group as `params` says."""
    if described.captions:
        return _any(described.captions, random)
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
