"""The Triton model repository of one release, from the templates beside this file.

Its public models are `clip_text`, `clip_image` and `clip_search`; the others are their parts. It is what a GPU server
with the onnxruntime backend serves, and (by --model-config-name=cpu_python) a CPU server with Python alone.
"""

import shutil
from pathlib import Path
from string import Template
from typing import Any

from clip_core.errors import UserError
from clip_core.model.contract import read_contract
from clip_core.serve.golden import GOLDEN_FOLDER, Golden, write_golden
from clip_core.serve.index import read_index

TEMPLATES = Path(__file__).with_name("templates")
PUBLIC = ("clip_text", "clip_image", "clip_search")
# Each model and what lies in its version folder, beside the model.py of its template; a model follows those it asks.
MODELS = {
    "text_preprocess": {f"onnx/{name}": name for name in ("model.json", "tokenizer.json", "release.txt")},
    "text_core": {"onnx/text.onnx": "model.onnx"},
    "image_preprocess": {f"onnx/{name}": name for name in ("model.json", "release.txt")},
    "image_core": {"onnx/image.onnx": "model.onnx"},
    "clip_text": {"onnx/release.txt": "release.txt"},
    "clip_image": {"onnx/release.txt": "release.txt"},
    "clip_search": {f"index/{name}": name for name in ("features.npy", "image_ids.json", "index.json")},
}


def assemble(onnx: Path, index: Path, golden: Golden, k: int, folder: Path) -> None:
    """Writes the model repository of the export and its index into the empty folder `folder`.

    ValueError when the index or the golden answers were made by another release.
    """
    contract, gallery = read_contract(onnx), read_index(index)
    release = (onnx / "release.txt").read_text(encoding="utf-8").strip()
    if not release == gallery.release == golden.release:
        raise UserError(
            f"{index}: made by release {gallery.release}, but {onnx} holds {release} and the golden answers are of "
            f"{golden.release}. Run `dvc repro` again."
        )
    values = {
        "embed_dim": contract.embed_dim,
        "image_size": contract.image_size,
        "top_k": min(k, len(gallery.features)),
    }
    for model, files in MODELS.items():
        _fill_templates(TEMPLATES / model, folder / model, values)
        (folder / model / "1").mkdir(exist_ok=True)
        for source, name in files.items():
            where, file = source.split("/")
            path = {"onnx": onnx, "index": index}[where] / file
            shutil.copy2(path, folder / model / "1" / name)
            if (weights := path.with_name(f"{file}.data")).exists():  # of a large graph; it finds them by this name
                shutil.copy2(weights, folder / model / "1" / weights.name)
    write_golden(golden, folder / "clip_search" / GOLDEN_FOLDER)


def read_config(file: Path) -> Any:
    """The model configuration (a protobuf message) in `file`; ValueError when Triton could not read it either."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig  # ty: ignore[missing-module-member]

    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), ModelConfig())
    except FileNotFoundError:
        raise UserError(f"{file.parent}: not a model of a Triton repository: {file.name} is missing") from None
    except text_format.ParseError as error:
        raise UserError(f"{file}: not a Triton model configuration: {error}") from None


def _fill_templates(template: Path, folder: Path, values: dict[str, int]) -> None:
    for file in sorted(template.rglob("*")):
        if file.is_file() and file.suffix in (".pbtxt", ".py"):
            target = folder / file.relative_to(template)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(file.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
