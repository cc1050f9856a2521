"""The page of curation: for each rule how many pairs left, some of them, and the picture that stays instead."""

import base64
import io
from pathlib import Path

from PIL import Image

from clip_core.data.curate import Curated
from clip_core.data.pages import rendered
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


def write_page(curated: Curated, raw: Path, folder: Path) -> None:
    """Writes `index.html`, which loads nothing from outside; the pictures come from data/raw."""
    pictures = _read_pictures(raw, [picture for example in curated.examples for picture in example.pictures])
    left, rules = curated.train, []
    for name, taken in curated.rules.items():
        numbers = [] if taken is None else [left, taken, left := left - taken]
        examples = [example for example in curated.examples if example.reason == name]
        rules.append({"name": name, "meaning": MEANINGS[name], "numbers": numbers, "examples": examples})
    page = rendered("curation.html", overlap=curated.overlap, rules=rules, pictures=pictures)
    (folder / "index.html").write_text(page, encoding="utf-8")


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
