"""Packing of one shard: a store for each split that it has, the training pictures made smaller if wanted."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from clip_core.config.packing import Pack, Resize
from clip_core.data.pairs import HELD_OUT, SPLITS, read_images, read_pairs, write_counts
from clip_core.data.store import StoreWriter
from clip_core.image import read_image


def pack_shard(params: Pack, curated: Path, images: Path, elsewhere: frozenset[str], out: Path) -> None:
    """Fills `out` with a store named by its split for each split; `elsewhere`: pictures that an earlier shard holds.

    Of valid and test a picture is a candidate once. In train each shard has its own copy, so that its pairs can be read
    without another.
    """
    pairs = read_pairs(curated)
    of_split = {split: pairs[pairs["split"] == split] for split in SPLITS}
    wanted = {split: set(rows["image_id"].dropna()) for split, rows in of_split.items() if len(rows)}
    writers = {split: StoreWriter(out / split, params.shard_mib * 2**20) for split in wanted}
    saved = 0
    for image_id, image in read_images(images):
        for split, writer in writers.items():
            if image_id in wanted[split] and not (split in HELD_OUT and image_id in elsewhere):
                stored = resized(image, params.resize) if params.resize and split == "train" else image
                saved += len(image) - len(stored)
                writer.add(image_id, image, stored)
    manifests = {split: writer.finish(of_split[split], elsewhere) for split, writer in writers.items()}
    numbers = {split: manifest["num_images"] for split, manifest in manifests.items()}
    num_packed = sum(manifest["num_pairs"] for manifest in manifests.values())
    write_counts(out, len(pairs), num_packed, [], images=numbers, bytes_saved=saved)


def pictures_of_earlier_shards(folder: Path, shards: Iterable[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Each shard with those of its valid and test pictures that an earlier one has, too: few, since ids are unique."""
    import duckdb

    held_out = """
        SELECT image_id, min(filename) AS first, list(DISTINCT filename) AS files
        FROM read_parquet(?, filename = true)
        WHERE split IN ('valid', 'test') AND image_id IS NOT NULL GROUP BY image_id HAVING first < max(filename)
    """
    later: dict[str, set[str]] = {}
    for image_id, first, files in duckdb.execute(held_out, [f"{folder}/pairs-*.parquet"]).fetchall():
        for file in files:
            if file != first:
                later.setdefault(Path(file).stem.removeprefix("pairs-"), set()).add(image_id)
    for shard in shards:
        yield shard, frozenset(later.get(shard, ()))


def resized(image: bytes, params: Resize) -> bytes:
    """The picture as a JPEG with the wanted shorter side; its own bytes, where these are fewer or the side is less."""
    picture = read_image(image)
    factor = params.short_side / min(picture.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in picture.size)
    written = io.BytesIO()
    picture.resize((width, height), Image.Resampling.BICUBIC).save(written, "JPEG", quality=params.quality)
    return min(written.getvalue(), image, key=len)
