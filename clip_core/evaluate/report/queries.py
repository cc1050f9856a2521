"""The report's queries: Chinese texts with the pictures that were found, right and wrong ones marked."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape

from clip_core.image import read_image

SIDE = 96  # pixels of a picture on the page
SHOWN = {"seen": 14, "unseen": 10}
TITLES = {"seen": "Concepts seen in training", "unseen": "Concepts never seen in training"}

ReadImage = Callable[[str], bytes]  # image_id -> encoded bytes


def every_nth(queries: Sequence[Mapping], count: int) -> list[Mapping]:
    """About `count` queries at equal steps in the order of their ids: nobody picked them."""
    ordered = sorted(queries, key=lambda query: query["text_id"])
    step = max(1, len(ordered) // count)
    return ordered[step // 2 :: step][:count]


def query_grid(queries: Sequence[Mapping], read_bytes: ReadImage, known: bool) -> str:
    """Sections of the queries in details.json, one for each group; `known`: whether they are about known concepts."""
    names = _names(queries)
    sections = []
    for group, count in SHOWN.items():
        mine = [query for query in queries if query["group"] == group]
        if mine:
            shown = every_nth(mine, count)
            rows = "".join(_query(query, names, read_bytes) for query in shown)
            title = TITLES[group] if known else "Queries"
            rule = f"every {max(1, len(mine) // count)}th of {len(mine):,} queries, in the order of their ids"
            sections.append(f'<h3>{title} <small>{rule}</small></h3><div class="queries">{rows}</div>')
    return "".join(sections)


def sample(queries: Sequence[Mapping], read_bytes: ReadImage) -> str:
    """A few queries with their best pictures, small enough to stand beside the title."""
    names = _names(queries)
    rows = "".join(
        f'<li><span lang="zh">{escape(query["text"])}</span>{_hits(query, names, read_bytes, count=5)}</li>'
        for query in every_nth(queries, 5)
    )
    return f'<ul class="sample" aria-label="five queries and the pictures found">{rows}</ul>'


def thumbnail(encoded: bytes) -> str:
    """The picture as a small `data:` address."""
    picture = read_image(encoded)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _names(queries: Sequence[Mapping]) -> dict[str, str]:
    return {image: query["text"] for query in queries for image in query["right"]}


def _query(query: Mapping, names: dict[str, str], read_bytes: ReadImage) -> str:
    right = set(query["right"])
    rank = next((place for place, image in enumerate(query["top"], start=1) if image in right), None)
    verdict = (
        f"found at {rank}" if rank else "missed " + _picture(query["right"][0], names, read_bytes, "missed", "wanted")
    )
    return (
        f'<article class="query {"found" if rank else "lost"}"><h4 lang="zh">{escape(query["text"])}</h4>'
        f'{_hits(query, names, read_bytes)}<p class="verdict">{verdict}</p></article>'
    )


def _hits(query: Mapping, names: dict[str, str], read_bytes: ReadImage, count: int = 10) -> str:
    right = set(query["right"])
    pictures = "".join(
        _picture(image, names, read_bytes, "right" if image in right else "wrong", f"{place}, score {score:.2f}")
        for place, (image, score) in enumerate(zip(query["top"], query["scores"], strict=True), start=1)
        if place <= count
    )
    return f'<div class="hits">{pictures}</div>'


def _picture(image: str, names: dict[str, str], read_bytes: ReadImage, mark: str, place: str) -> str:
    name = escape(names.get(image, image))
    source = thumbnail(read_bytes(image))
    return f'<span class="hit {mark}" title="{name} ({place})"><img src="{source}" alt="{mark}: {name}"></span>'
