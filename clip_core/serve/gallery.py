"""A weights folder made ready for Triton without a pipeline: `python -m clip_core.serve.gallery WEIGHTS PICTURES OUT`.

The weights may be imported or trained here; the pictures are what the served model will find. OUT/repository is then a
Triton model repository that a real Triton has proved, and OUT/images the pictures for the page.
"""

import argparse
import os
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from clip_core.config.deploy import Deploy
from clip_core.data.store import Store, StoreWriter, open_store
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import replacing_folder
from clip_core.image import pixels_of, read_size
from clip_core.model.contract import Contract, read_contract
from clip_core.serve.golden import Golden, make_golden
from clip_core.serve.triton import check_server, connect, triton_server

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
KINDS = ", ".join(f"*{suffix}" for suffix in sorted(SUFFIXES))
MAX_BYTES, MAX_PIXELS = 16 * 2**20, 40_000_000  # of a picture, as in triton_models.py, which Triton alone can import
SHARD_BYTES = 256 * 2**20
TOP_K, MAX_TOP_K = 10, 100
GOLDEN = Deploy(num_golden=8, num_timed=1, max_feature_difference=1e-4)
TEXTS = ("一只猫", "红色的爱心", "蓝天白云下的大海", "一个人在街上走", "美味的食物", "黑白照片", "iPhone 手机", "花")


def make_gallery(weights: Path, pictures: Path, out: Path, k: int = TOP_K) -> dict[str, float]:
    """Writes the new folder `out`; returns the served model's largest differences from torch.

    `k` pictures are found for a text. Raises UserError when a part is missing or torch and Triton differ; nothing is
    then written.
    """
    if not 1 <= k <= MAX_TOP_K:
        raise UserError(f"--top-k {k}: 1 to {MAX_TOP_K} pictures can be found for a text")
    contract = read_contract(weights)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; name a new folder, or remove it first")
    check_server(out)
    with replacing_folder(out) as aside:
        store = store_pictures(pictures, contract, aside / "images")
        golden = _golden(weights, store, k)  # torch answers before onnxruntime is loaded

        from clip_core.serve.export import export_alone
        from clip_core.serve.index import build_index
        from clip_core.serve.model_repository import assemble

        with TemporaryDirectory(dir=aside) as parts:
            onnx, index = Path(parts, "onnx"), Path(parts, "index")
            print("exporting the towers", flush=True)
            export_alone(weights, onnx)
            build_index(onnx, store, golden.texts, k, 1.0, index)
            (aside / "repository").mkdir()
            assemble(onnx, index, golden, k, aside / "repository")
        return _prove(aside)


def store_pictures(folder: Path, contract: Contract, out: Path) -> Store:
    """A store of the pictures in `folder` and below; a picture's id is its path there.

    Those that can not be read are named with the reason and left out; UserError when none is left.
    """
    import pandas as pd

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of pictures")
    image_ids = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if is_picture(file))
    writer, rows = StoreWriter(out, SHARD_BYTES), []
    for image_id in image_ids:
        try:
            image = _read_picture(folder / image_id, contract)
        except UserError as error:
            print(f"left out: {_in_utf8(folder / image_id)}: {error}", flush=True)
            continue
        writer.add(image_id, image)
        rows.append(_row(image_id, image))
    if not rows:
        raise UserError(f"{folder}: none of its {len(image_ids)} files {KINDS} is a picture to find")
    writer.finish(pd.DataFrame(rows))
    print(f"{len(rows)} of {len(image_ids)} pictures in {folder} can be found", flush=True)
    return open_store(out)


def is_picture(file: Path) -> bool:
    """Whether it is a file whose name is that of a picture, and not hidden, or leads to nothing that can be seen."""
    can_be_read = os.path.isfile(file) or not os.path.exists(file)  # noqa: PTH110, PTH113 - unlike Path's, never raise
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and can_be_read


def _read_picture(file: Path, contract: Contract) -> bytes:
    """The encoded picture; raises UserError with the reason when it can not be read, or not by the model."""
    if _in_utf8(file) != str(file):
        raise UserError("its name is not UTF-8; rename it")
    try:
        image = file.read_bytes()
    except OSError as error:
        raise UserError(error.strerror) from None
    if len(image) > MAX_BYTES:
        raise UserError(f"{len(image):,} bytes; {MAX_BYTES:,} are allowed")
    pixels_of(image, contract.image_size, contract.preprocessing, MAX_PIXELS)
    return image


def _in_utf8(file: Path) -> str:
    return os.fsencode(file).decode("utf-8", "replace")


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


def _golden(weights: Path, store: Store, k: int) -> Golden:
    from clip_core.inference.predictor import load
    from clip_core.serve.truth import Truth, encode_pictures

    predictor = load(weights)
    features = predictor.encode_texts(TEXTS), encode_pictures(predictor, store)
    truth = Truth(predictor.release, TEXTS, features[0], [], store.image_ids, features[1], {})
    return make_golden(truth, predictor, store, GOLDEN, k)


def _prove(folder: Path) -> dict[str, float]:
    """Asks a real Triton that serves a copy of the repository in `folder` the golden queries."""
    from contextlib import closing

    from clip_core.serve.release import new_live_repository, probe_public

    print("Triton loads the models ...", flush=True)
    with TemporaryDirectory(dir=folder) as scratch:
        live = Path(scratch, "repository")
        models = new_live_repository(folder / "repository", live)
        with triton_server(live, models, Path(scratch, "log")) as server, closing(connect(server.address)) as client:
            return probe_public(client, live)


def main() -> None:
    """Runs the command; a mistake of the user's becomes a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.gallery", description=__doc__)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="a weights folder")
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help=f"a folder of pictures, {KINDS}")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--top-k", type=int, default=TOP_K, metavar="K", help="found for a text (default %(default)s)")
    arguments = parser.parse_args()
    set_switches()
    out = arguments.out
    with told_to_the_user(OSError):
        differences = make_gallery(arguments.weights, arguments.pictures, out, arguments.top_k)
    told = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"wrote {out}; Triton's largest differences from torch: {told}")
    print(f"next: python -m clip_core.serve.gateway --repository {out}/repository --images {out}/images")


if __name__ == "__main__":
    main()
