"""A weights folder made ready for Triton without a pipeline: `python -m clip_core.serve.gallery WEIGHTS PICTURES OUT`.

The weights may be imported or trained here; the pictures are what the served model will find. OUT then holds a release
that a real Triton has proved. Called again with other weights or pictures, it adds the next one, for `make rollout`.
"""

import argparse
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from clip_core.config.deploy import Deploy, Triton
from clip_core.data.store import Store, StoreWriter, open_store
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.image import pixels_of, read_size
from clip_core.model.contract import Contract, read_contract
from clip_core.serve import releases
from clip_core.serve.golden import Golden, Seen, make_golden
from clip_core.serve.picture_files import KINDS, in_utf8, is_picture
from clip_core.serve.release import GALLERY_NAME, seal
from clip_core.serve.triton import check_server

MAX_BYTES, MAX_PIXELS = 16 * 2**20, 40_000_000  # of a picture, as in triton_models.py, which Triton alone can import
SHARD_BYTES = 256 * 2**20
TOP_K, MAX_TOP_K = 10, 100
TRITON = Triton(towers=1, threads=1, preparers=1, tensorrt=None)
GOLDEN = Deploy(num_golden=8, num_timed=1, max_feature_difference=1e-4, triton=TRITON)
TEXTS = ("一只猫", "红色的爱心", "蓝天白云下的大海", "一个人在街上走", "美味的食物", "黑白照片", "iPhone 手机", "花")


def make_gallery(weights: Path, pictures: Mapping[str, Path], out: Path, k: int = TOP_K) -> tuple[str, dict]:
    """Adds a release to the folder `out`; returns its id and the served model's largest differences from torch.

    `pictures` are folders, by the name of the gallery that each becomes; `k` pictures are found for a text. Raises
    UserError when a part is missing or torch and Triton differ; nothing is then added.
    """
    if not 1 <= k <= MAX_TOP_K:
        raise UserError(f"--top-k {k}: 1 to {MAX_TOP_K} pictures can be found for a text")
    contract = read_contract(weights)
    if out.exists() and any(out.iterdir()) and not (out / "releases").is_dir():
        raise UserError(f"{out}: is there already and holds no releases; name a new folder, or remove it first")
    check_server(out)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=out) as scratch:
            return _add(weights, contract, pictures, Path(scratch), out, k)
    finally:
        if is_new and not any(out.iterdir()):
            out.rmdir()


def _add(
    weights: Path, contract: Contract, pictures: Mapping[str, Path], scratch: Path, out: Path, k: int
) -> tuple[str, dict]:
    stores = {name: store_pictures(folder, contract, scratch / name) for name, folder in pictures.items()}
    golden = _golden(weights, stores, k)  # torch answers before onnxruntime is loaded

    from clip_core.config.index import Index
    from clip_core.serve.assemble import Gallery, assemble
    from clip_core.serve.deploy import proved
    from clip_core.serve.export import export_alone
    from clip_core.serve.index import build_index

    onnx, release = scratch / "onnx", scratch / "release"
    print("exporting the towers", flush=True)
    export_alone(weights, onnx)
    searched = Index(kind="exact", top_k=k, min_recall=1.0, metadata=())
    for name, store in stores.items():
        build_index(onnx, store, golden.texts, searched, scratch / f"{name}.index")
    release.mkdir()
    galleries = {name: Gallery(scratch / name, scratch / f"{name}.index") for name in stores}
    release_id = assemble(onnx, galleries, golden, k, TRITON, release)
    print("Triton loads the models ...", flush=True)
    with proved(release, release_id, out / "gallery.log") as (_, report):
        differences = report["golden_max_difference"]
    seal(release, golden.weights_id, tuple(galleries))
    releases.add(out, release, keep=None)
    return release_id, differences


def ids_in(folder: Path) -> list[str]:
    """The ids of the pictures in `folder` and below, sorted: the path of each there."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of pictures")
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if is_picture(file))


def store_pictures(
    folder: Path, contract: Contract, out: Path, described: Mapping[str, Mapping[str, str]] | None = None
) -> Store:
    """A store of the pictures in `folder` and below; of some it is `described`, by id, what the pair table is to say.

    Those that can not be read are named with the reason and left out; UserError when none is left.
    """
    import pandas as pd

    image_ids, writer, rows = ids_in(folder), StoreWriter(out, SHARD_BYTES), []
    for image_id in image_ids:
        try:
            image = _read_picture(folder / image_id, contract)
        except UserError as error:
            print(f"left out: {in_utf8(folder / image_id)}: {error}", flush=True)
            continue
        writer.add(image_id, image)
        rows.append(_row(image_id, image) | dict((described or {}).get(image_id, {})))
    if not rows:
        raise UserError(f"{folder}: none of its {len(image_ids)} files {KINDS} is a picture to find")
    writer.finish(pd.DataFrame(rows))
    print(f"{len(rows)} of {len(image_ids)} pictures in {folder} can be found", flush=True)
    return open_store(out)


def _read_picture(file: Path, contract: Contract) -> bytes:
    """The encoded picture; raises UserError with the reason when it can not be read, or not by the model."""
    if in_utf8(file) != str(file):
        raise UserError("its name is not UTF-8; rename it")
    try:
        image = file.read_bytes()
    except OSError as error:
        raise UserError(error.strerror) from None
    if len(image) > MAX_BYTES:
        raise UserError(f"{len(image):,} bytes; {MAX_BYTES:,} are allowed")
    pixels_of(image, contract.image_size, contract.preprocessing, MAX_PIXELS)
    return image


def _row(image_id: str, image: bytes) -> dict:
    """A picture that nobody described: the page shows the name of its file."""
    width, height = read_size(image)
    return {
        "pair_id": image_id,
        "image_id": image_id,
        "text_id": image_id,
        "caption": Path(image_id).stem,
        "language": "zh",
        "caption_kind": "name",
        "concept_id": None,
        "family": None,
        "group": None,
        "split": "test",
        "source": "gallery",
        "licence": "",
        "image_sha256": sha256(image).hexdigest(),
        "width": width,
        "height": height,
        "num_bytes": len(image),
    }


def _golden(weights: Path, stores: Mapping[str, Store], k: int) -> Golden:
    from clip_core.inference.predictor import encode_pictures, load

    predictor = load(weights)
    seen = {name: Seen(store, encode_pictures(predictor, store)) for name, store in stores.items()}
    return make_golden(predictor, TEXTS, seen, GOLDEN, k)


def named(folders: list[str]) -> dict[str, Path]:
    """The folders by the names of their galleries: each is FOLDER, whose own name it gets, or NAME=FOLDER."""
    found: dict[str, Path] = {}
    for text in folders:
        name, has_name, folder = text.partition("=")
        path = Path(folder if has_name else text)
        name = name if has_name else path.resolve().name.lower()
        if not GALLERY_NAME.fullmatch(name) or name in found:
            reason = "is there twice" if name in found else "has small letters, digits, - and _, and 32 of them at most"
            raise UserError(f"{text}: a gallery's name {reason}; write NAME={path}")
        found[name] = path
    return found


def main() -> None:
    """Runs the command; a mistake of the user's becomes a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.gallery", description=__doc__)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="a weights folder")
    parser.add_argument("pictures", nargs="+", metavar="PICTURES", help=f"folders of {KINDS}: FOLDER or NAME=FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder of releases, new or from an earlier call")
    parser.add_argument("--top-k", type=int, default=TOP_K, metavar="K", help="found for a text (default %(default)s)")
    arguments = parser.parse_args()
    set_switches()
    out = arguments.out
    with told_to_the_user(OSError):
        release, differences = make_gallery(arguments.weights, named(arguments.pictures), out, arguments.top_k)
    told = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"added to {out}: {releases.announcement(out, release)}\nTriton's largest differences from torch: {told}")
    print(f"next: python -m clip_core.serve.gateway --serving {out}")


if __name__ == "__main__":
    main()
