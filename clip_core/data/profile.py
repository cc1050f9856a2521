"""What validation and curation need to know of every pair: the profile table, and a fingerprint of every picture."""

import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from clip_core.data.pairs import HELD_OUT
from clip_core.image import read_image, read_size

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

CHUNK = 500  # pictures in memory at a time
THUMBNAIL_SIDE = 16
FINGERPRINT = ("difference_hash", "thumbnail")
MEASURED = ("actual_sha256", "bytes", "picture_decodes", "side", "pixels", "aspect")
STEP = 4  # grey levels that neighbours must differ by, so that JPEG's noise in a flat area sets no bit
CJK = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"


def profile_images(images: Iterable[tuple[str, bytes]], max_pixels: int) -> "pd.DataFrame":
    """A row a picture: what it truly is, and its fingerprint for curation; null where it can not be decoded."""
    import pandas as pd

    def profile(named: tuple[str, bytes]) -> dict:
        return {"image_id": named[0], **profile_image(named[1], max_pixels)}

    rows: list[dict] = []
    spoke_at = time.monotonic()
    images = iter(images)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
        while chunk := list(islice(images, CHUNK)):
            rows += pool.map(profile, chunk)
            if time.monotonic() - spoke_at > 3:
                print(f"validate: {len(rows)} pictures decoded", flush=True)
                spoke_at = time.monotonic()
    return pd.DataFrame(rows, columns=["image_id", *MEASURED, *FINGERPRINT])


def profile_image(data: bytes, max_pixels: int) -> dict:
    """The facts about one picture's bytes; one with more than `max_pixels` is measured, but not decoded."""
    facts: dict[str, object] = {"actual_sha256": sha256(data).hexdigest(), "bytes": len(data)}
    try:
        sides = sorted(read_size(data, sys.maxsize))
        facts |= {"side": sides[0], "pixels": sides[0] * sides[1], "aspect": sides[1] / sides[0]}
        if sides[0] * sides[1] > max_pixels:
            return facts
        image = read_image(data, max_pixels)
    except ValueError:
        return facts | {"picture_decodes": False}
    return facts | {
        "picture_decodes": True,
        "difference_hash": difference_hash(image),
        "thumbnail": thumbnail(image),
    }


def difference_hash(image: "Image.Image") -> int:
    """A 64-bit perceptual hash: where the picture, shrunk to 9 x 8 grey pixels, grows brighter to the right."""
    from PIL import Image

    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = grey[:, 1:] - grey[:, :-1] > STEP
    return int.from_bytes(np.packbits(bits).tobytes())


def thumbnail(image: "Image.Image") -> bytes:
    """The picture shrunk to 16 x 16 RGB pixels: tells a red circle from a blue one, which the hash does not."""
    from PIL import Image

    return image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()


def profile_pairs(pairs: "pd.DataFrame", images: "pd.DataFrame") -> "pd.DataFrame":
    """The table that the suite runs over: a row of the pair table, and a row for each picture that it does not name.

    A value that is not there to be judged (the size of a picture that can not be decoded, the caption of a picture
    without text) is null, and passes the rules about values: one fault is then found by one rule.
    """
    import pandas as pd

    facts = images.drop(columns=list(FINGERPRINT))
    profile = pairs.merge(facts, on="image_id", how="left", validate="many_to_one")
    lacks = profile[["image_id", "text_id"]].isna()
    is_alone = profile["split"].isin(HELD_OUT) & (lacks.sum(axis="columns") == 1)  # a picture, or a text, without pair
    profile["picture_has_pair"] = True
    profile["pair_has_picture"] = profile["actual_sha256"].notna() | (is_alone & lacks["image_id"])
    is_recorded = profile["actual_sha256"] == profile["image_sha256"]
    profile["picture_unchanged"] = is_recorded | profile["actual_sha256"].isna()
    profile["pair_is_new"] = ~profile["pair_id"].duplicated()
    given = profile[["pair_id", "image_id", "text_id"]].fillna("") != ""
    profile["ids_given"] = given["pair_id"] & (given[["image_id", "text_id"]].all(axis="columns") | is_alone)
    profile["licence"] = profile["licence"].fillna("")
    profile["caption"] = profile["caption"].fillna("").where(~(is_alone & lacks["text_id"]))
    profile["caption_length"] = profile["caption"].str.len()
    share = profile["caption"].str.count(CJK) / profile["caption_length"].clip(lower=1)
    profile["cjk_share"] = share.where(profile["language"] == "zh")
    orphans = facts[~facts["image_id"].isin(pairs["image_id"])].assign(picture_has_pair=False)
    profile = pd.concat([profile, orphans], ignore_index=True)
    profile["row"] = range(len(profile))
    return profile
