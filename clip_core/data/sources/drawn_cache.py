"""The cache of a built-in source: what pinned packages hold, rendered once and checked whenever it is read."""

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from clip_core.data.sources.npm_packages import fetch
from clip_core.errors import UserError
from clip_core.files import replacing_folder, sha256_file

SIDE = 64  # pixels of a rendered picture
BATCH = 200  # pictures a worker renders at a time
REMEDY = "Run `make setup`: it fetches the built-in pictures."


@dataclass(frozen=True)
class Drawings:
    """What the packages hold."""

    concepts: list[dict]  # the words: a row a concept
    key: str  # the column of the concepts that tells which one a picture shows
    svgs: dict[str, dict[str, str]]  # artwork -> key -> SVG
    artworks: dict[str, dict]  # title, author, licence and links


def fill(cache: Path, table: Path, readers: Sequence[ModuleType], read: Callable[[dict[str, Path]], Drawings]) -> None:
    """Fills `cache` unless it is already whole; what an interrupted run has downloaded is used again.

    `read` makes drawings of the packages of the table; the modules `readers` are what its result depends on.
    """
    recipe = recipe_of(table, readers)
    if is_whole(cache, recipe):
        print(f"built-in pictures: {cache} is complete")
        return
    downloads = cache.with_name(f"{cache.name}-downloads")
    drawings = read(fetch(table, downloads))
    pictures = render(drawings)
    write_cache(cache, recipe, drawings, pictures)
    shutil.rmtree(downloads)
    print(f"built-in pictures: {len(pictures)} pictures of {len(drawings.concepts)} concepts in {cache}")


def recipe_of(table: Path, readers: Sequence[ModuleType]) -> str:
    """A name for what the cache is made from: the packages, how they are read, the renderer and the size."""
    files = [table, *(Path(str(module.__file__)) for module in readers)]
    made_from = [*(file.read_text(encoding="utf-8") for file in files), version("resvg-py"), str(SIDE)]
    return sha256("\0".join(made_from).encode()).hexdigest()


def is_whole(cache: Path, recipe: str) -> bool:
    """Whether the cache was made by this recipe and its files are the ones written then."""
    try:
        manifest = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
        return manifest["recipe"] == recipe and all(
            sha256_file(cache / name) == expected for name, expected in manifest["sha256"].items()
        )
    except (FileNotFoundError, ValueError, KeyError):
        return False


def render(drawings: Drawings) -> list[dict]:
    """Every SVG as PNG bytes, in a fixed order, on all cores."""
    svgs = drawings.svgs
    keys = [(artwork, key) for artwork in svgs for key in svgs[artwork]]
    batches = [keys[i : i + BATCH] for i in range(0, len(keys), BATCH)]
    pictures: list[dict] = []
    spoke_at = time.monotonic()
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        rendered = pool.map(render_batch, ([svgs[artwork][key] for artwork, key in batch] for batch in batches))
        for batch, images in zip(batches, rendered, strict=True):
            pictures += [
                {"artwork": artwork, drawings.key: key, "image": image}
                for (artwork, key), image in zip(batch, images, strict=True)
            ]
            if time.monotonic() - spoke_at > 2 or len(pictures) == len(keys):
                print(f"built-in pictures: rendered {len(pictures)}/{len(keys)}", flush=True)
                spoke_at = time.monotonic()
    return pictures


def render_batch(svgs: list[str]) -> list[bytes]:
    """The SVGs as PNG bytes on white. No system fonts: the pictures are the same on every machine."""
    from resvg_py import svg_to_bytes

    return [
        bytes(svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, background="white", skip_system_fonts=True))
        for svg in svgs
    ]


def write_cache(cache: Path, recipe: str, drawings: Drawings, pictures: list[dict]) -> None:
    """Writes the cache whole: pictures, concepts, and a manifest with their sha256 and the artworks' licences."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing_folder(cache) as folder:
        pq.write_table(pa.Table.from_pylist(pictures), folder / "pictures.parquet", compression="none")
        pq.write_table(pa.Table.from_pylist(drawings.concepts), folder / "concepts.parquet")
        manifest = {
            "recipe": recipe,
            "artworks": drawings.artworks,
            "sha256": {file.name: sha256_file(file) for file in sorted(folder.glob("*.parquet"))},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def licences_in(cache: Path) -> dict[str, str]:
    """Each artwork's licence; refuses a cache that is missing or damaged."""
    try:
        manifest = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{cache}: the built-in pictures are not there. {REMEDY}") from None
    for name, expected in manifest["sha256"].items():
        if not (cache / name).exists() or sha256_file(cache / name) != expected:
            raise UserError(f"{cache / name}: missing or damaged, its sha256 is not {expected}. {REMEDY}")
    return {artwork: about["licence"]["spdx"] for artwork, about in manifest["artworks"].items()}
