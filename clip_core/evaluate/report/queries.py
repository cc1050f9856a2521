"""The report's pictures: queries with what was found, the surest hits, the farthest misses, the confused classes."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from clip_core.evaluate.report.bilingual import say
from clip_core.image import read_image

SIDE = 96  # pixels of a picture on the page
SHOWN = {"seen": 10, "unseen": 8}
TITLES = {"seen": "Concepts seen in training", "unseen": "Concepts never seen in training"}
NUM_EXTREME = 6  # hits, and misses

ReadImage = Callable[[str], bytes]  # image_id -> encoded bytes


def every_nth(queries: Sequence[Mapping], count: int) -> list[Mapping]:
    """About `count` queries at equal steps in the order of their ids: nobody picked them."""
    ordered = sorted(queries, key=lambda query: query["text_id"])
    step = max(1, len(ordered) // count)
    return ordered[step // 2 :: step][:count]


def grids(details: Mapping, read_bytes: ReadImage, known: bool) -> dict:
    """What the page shows of details.json; `known`: whether its queries are about known concepts."""
    queries = details["text_to_image"]
    show = Shown(queries, read_bytes)
    blocks = []
    for group, count in SHOWN.items():
        mine = [query for query in queries if query["group"] == group]
        rule = say("every {}th of {} queries, in the order of their ids", max(1, len(mine) // count), f"{len(mine):,}")
        blocks.append((say(TITLES[group] if known else "Queries"), rule, every_nth(mine, count)))
    hits = sorted((query for query in queries if query["rank"] == 1), key=_lead, reverse=True)
    misses = sorted((query for query in queries if query["rank"] > 1), key=lambda query: query["rank"], reverse=True)
    blocks += [
        (say("Surest hits"), say("the right picture leads by most"), hits[:NUM_EXTREME]),
        (say("Farthest misses"), say("the right picture stands last"), misses[:NUM_EXTREME]),
    ]
    return {
        "sample": [show.query(query, num_hits=5) for query in every_nth(queries, 5)],
        "blocks": [
            {"title": title, "rule": rule, "queries": [show.query(query) for query in shown]}
            for title, rule, shown in blocks
            if shown
        ],
        "free": [show.free(query) for query in details["free"]],
        "confused": [
            mistake | {"pictures": [show.picture(image, "mistaken") for image in mistake["pictures"]]}
            for mistake in details["confused"]
        ],
    }


class Shown:
    """Pictures as the page has them, each encoded once."""

    def __init__(self, queries: Sequence[Mapping], read_bytes: ReadImage) -> None:
        self.names = {image: query["text"] for query in queries for image in query["right"]}
        self.source = cache(lambda image: thumbnail(read_bytes(image)))

    def query(self, query: Mapping, num_hits: int = 10) -> dict:
        """A text with its best pictures, and the one that it wanted where that is not among them."""
        is_found = set(query["right"]) & set(query["top"])
        missed = None if is_found else self.picture(query["right"][0], "missed", "wanted")
        return {"text": query["text"], "rank": query["rank"], "hits": self._hits(query)[:num_hits], "wanted": missed}

    def free(self, query: Mapping) -> dict:
        """A text of which no right picture is known, with its best pictures."""
        return {"text": query["text"], "hits": self._hits(query)}

    def _hits(self, query: Mapping) -> list[dict[str, str]]:
        right = set(query["right"])
        marks = ["free" if not right else "right" if image in right else "wrong" for image in query["top"]]
        return [
            self.picture(image, mark, f"{place}, score {score:.2f}")
            for place, (image, mark, score) in enumerate(zip(query["top"], marks, query["scores"], strict=True), 1)
        ]

    def picture(self, image: str, mark: str, place: str = "") -> dict[str, str]:
        """One picture with its name."""
        name = self.names.get(image, image)
        told = f"{name} ({place})" if place else name
        return {"mark": mark, "name": name, "told": told, "source": self.source(image)}


def thumbnail(encoded: bytes) -> str:
    """The picture as a small `data:` address."""
    picture = read_image(encoded)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _lead(query: Mapping) -> float:
    """How far the right picture, which is first, stands before the best wrong one."""
    right = set(query["right"])
    wrong = (score for image, score in zip(query["top"], query["scores"], strict=True) if image not in right)
    return query["scores"][0] - next(wrong, query["scores"][-1])
