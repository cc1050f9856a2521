"""The page of curation: for each rule how many pairs left, some of them, and the picture that stays instead."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from clip_core.data.curate import Curated, Example
from clip_core.image import read_image

SIDE = 96  # pixels of a shown picture
MEANINGS = {
    "language": "another language than those asked for",
    "caption_length": "a caption that is too short or too long",
    "aspect": "a picture that is too long or too high",
    "pattern": "boilerplate or advertising in the caption",
    "blacklist": "a word of the blacklist in the caption",
    "exact_duplicate": "the picture's bytes and the caption of an earlier pair",
    "near_duplicate": "the caption of an earlier pair, and a picture that looks like its picture",
    "leakage": "a picture that looks like one of valid or test",
    "score": "picture and caption do not fit, a model says",
    "pairs_per_caption": "more pairs of one caption than are allowed",
    "pairs_per_picture": "more pairs of one picture than are allowed",
}
STYLE = """
body { font: 16px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #ddd; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } img { height: 96px; margin-right: .5rem; }
figure { display: inline-block; margin: .5rem 1.5rem .5rem 0; vertical-align: top; max-width: 16rem; }
.off { color: #777; }
"""


def write_page(curated: Curated, raw: Path, folder: Path) -> None:
    """Writes `index.html`, which loads nothing from outside; the pictures come from data/raw."""
    pictures = _read_pictures(raw, [picture for example in curated.examples for picture in example.pictures])
    left, rows, sections = curated.train, "", ""
    for name, taken in curated.rules.items():
        numbers = [left, taken, left := left - taken] if taken is not None else ["", "off", ""]
        cells = "".join(f"<td class=n>{n:,}</td>" if isinstance(n, int) else f"<td class=off>{n}</td>" for n in numbers)
        rows += f"<tr><th>{name}</th>{cells}<td>{MEANINGS[name]}</td></tr>"
        if taken:
            figures = "".join(_figure(e, pictures) for e in curated.examples if e.reason == name)
            sections += f"<h2>{name}: {taken:,}</h2><p>{MEANINGS[name]}; at the right what stays</p>{figures}"
    overlap = (
        f"Valid and test lose nothing. {curated.overlap['pictures']:,} pictures of test look like one of valid, and "
        f"{curated.overlap['captions']:,} captions are in both."
    )
    head = "<tr><th>rule</th><th>pairs before</th><th>leave</th><th>after</th><th>what leaves</th></tr>"
    body = f"<h1>Curation of the training pairs</h1><p>{overlap}</p><table>{head}{rows}</table>{sections}"
    top = f"<meta charset=utf-8><title>Curation of the training pairs</title><style>{STYLE}</style>"
    page = f"<!doctype html><html lang=en><head>{top}</head><body>{body}</body></html>\n"
    (folder / "index.html").write_text(page, encoding="utf-8")


def _figure(example: Example, pictures: dict[str, str]) -> str:
    images = "".join(f'<img src="{pictures[name]}" alt="" title="{escape(name)}">' for _, name in example.pictures)
    return f"<figure>{images}<figcaption lang=zh>{escape(example.caption)}</figcaption></figure>"


def _read_pictures(raw: Path, wanted: list[tuple[str, str]]) -> dict[str, str]:
    """What the page shows of each picture; of a shard only the row groups are read that may hold one."""
    import pyarrow.parquet as pq

    found = {}
    for shard in sorted({shard for shard, _ in wanted}):
        ids = [image_id for other, image_id in wanted if other == shard]
        table = pq.read_table(raw / f"images-{shard}.parquet", filters=[("image_id", "in", ids)])
        for image_id, image in zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True):
            found[image_id] = _small(image)
    return found


def _small(image: bytes) -> str:
    shown, file = read_image(image), io.BytesIO()
    shown.thumbnail((2 * SIDE, SIDE), Image.Resampling.LANCZOS)
    shown.save(file, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
