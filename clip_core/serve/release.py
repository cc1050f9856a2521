"""A release: a folder that holds all it takes to serve one model, immutable and named by its bytes.

    manifest.json        written last, when a real Triton has proved the rest: the id and the sha256 of every file
    models/              a Triton model repository, with the code that its Python models run
    galleries/<name>/    the pictures that can be found, as a store
    golden/              questions with torch's answers
    calibration.json     from scores to probabilities, where that was fitted

The id is the hash of all files, but of those that state it: weights, tokenizer, preprocessing, indexes, galleries and
serving code.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from clip_core.config.section import Section
from clip_core.errors import UserError
from clip_core.files import link_file, sha256_file

MANIFEST = "manifest.json"
STATES_ID = "release.txt"  # in the folders of the models that answer with it
RELEASE_ID = re.compile(r"[0-9a-f]{16}")
GALLERY_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # it stands in paths and in URLs


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or name in (".", MANIFEST):
        raise ValueError("no name of a file in the release's folder")
    return name


class Manifest(Section):
    """The content of `manifest.json`."""

    format: Literal["clip_release/1"] = "clip_release/1"
    release: Annotated[str, Field(pattern=f"^{RELEASE_ID.pattern}$")]
    weights: str  # weights_id of the weights folder that it was made of
    galleries: tuple[str, ...]
    num_bytes: int
    files: dict[Annotated[str, AfterValidator(_inside)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]  # -> sha256


def sums_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a release, by its name in it, sorted; the manifest is not one of them."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: sha256_file(path) for name, path in files.items() if name != MANIFEST}


def id_of(sums: dict[str, str]) -> str:
    """The id of the release whose files have these sha256."""
    counted = "".join(f"{name} {digest}\n" for name, digest in sorted(sums.items()) if Path(name).name != STATES_ID)
    return hashlib.sha256(counted.encode()).hexdigest()[:16]


def is_itself(manifest: Manifest) -> bool:
    """Whether its id is that of its files, also by those that state it."""
    stated = hashlib.sha256(f"{manifest.release}\n".encode()).hexdigest()
    stating = {digest for name, digest in manifest.files.items() if Path(name).name == STATES_ID}
    return id_of(manifest.files) == manifest.release and stating <= {stated}


def seal(folder: Path, weights: str, galleries: tuple[str, ...]) -> Manifest:
    """Writes the manifest of a release that has been proved; from now on its files are what they are."""
    sums = sums_of(folder)
    num_bytes = sum((folder / name).stat().st_size for name in sums)
    manifest = Manifest(release=id_of(sums), weights=weights, galleries=galleries, num_bytes=num_bytes, files=sums)
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the release in `folder`; UserError when there is none that can be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no release: it has no {MANIFEST}. `make run` makes one, and `python -m "
            "clip_core.serve.gallery` makes one of any weights folder"
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / MANIFEST}: not the manifest of a release: {error}") from None


def verify(folder: Path) -> Manifest:
    """The manifest of the release in `folder`; UserError when a file is not the one that was proved."""
    manifest, found = read_manifest(folder), sums_of(folder)
    wrong = sorted(name for name in manifest.files.keys() | found.keys() if manifest.files.get(name) != found.get(name))
    if not wrong and not is_itself(manifest):
        wrong = [MANIFEST]
    if wrong:
        named = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(
            f"{folder}: not the release {manifest.release} that was proved: missing, new or changed: {named}. "
            "Remove the folder, then `make run` (or what made it) adds it again"
        )
    return manifest


def link_tree(source: Path, target: Path) -> None:
    """Makes the new folder `target` of links to the files of `source`; of copies where the disk is another one."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            link_file(path, place)
