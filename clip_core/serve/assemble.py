"""Puts a release together: the model repository from the templates beside this file, its galleries, golden queries.

Its public models are those in PUBLIC; the others are their parts. It is what a GPU server
with the onnxruntime backend serves, and (by --model-config-name=cpu_python) a CPU server with Python alone.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from clip_core.config.deploy import Triton
from clip_core.errors import UserError
from clip_core.files import check_space
from clip_core.inference.calibration import CALIBRATION_FILE, read_calibration
from clip_core.model.contract import read_contract, weights_id
from clip_core.serve.golden import Golden, write_golden
from clip_core.serve.index import read_index
from clip_core.serve.queries import lengths_of
from clip_core.serve.release import GALLERY_NAME, STATES_ID, id_of, sums_of

TEMPLATES = Path(__file__).with_name("templates")
PUBLIC = ("clip_text", "clip_image", "clip_search", "clip_similar", "clip_classify")
# Each model and which files of the export lie in its version folder; a model follows those it asks.
MODELS = {
    "text_preprocess": {"model.json": "model.json", "tokenizer.json": "tokenizer.json"},
    "text_core": {"text.onnx": "model.onnx"},
    "image_preprocess": {"model.json": "model.json"},
    "image_core": {"image.onnx": "model.onnx"},
    "clip_text": {},
    "clip_image": {},
    "clip_search": {},
    "clip_similar": {},
    "clip_classify": {},
}
ANSWERS_WITH_ID = ("text_preprocess", "image_preprocess", *PUBLIC)
TENSORRT = (
    'gpu_execution_accelerator { name: "tensorrt" parameters { key: "precision_mode" value: "$precision" } '
    'parameters { key: "max_workspace_size_bytes" value: "1073741824" } }'
)
# The first request of a shape takes long on a GPU, longest with TensorRT: Triton asks one before it is ready.
WARM_TEXT = Template(
    '{ name: "length $length" batch_size: 1 inputs { key: "token_ids" '
    'value { data_type: TYPE_INT64 dims: [ $length ] input_data_file: "length-$length" } } }'
)
CODE = Path(__file__).parents[2]
# What the Python models import of this project: a release serves with the code that it was proved with.
SERVING_CODE = (
    *(f"clip_core/{name}.py" for name in ("__init__", "errors", "files", "guard", "image", "locks", "text")),
    *(f"clip_core/config/{name}.py" for name in ("__init__", "model", "section")),
    *(f"clip_core/inference/{name}.py" for name in ("__init__", "calibration", "nearest", "onnx_towers", "prompts")),
    "clip_core/inference/prompts.toml",
    *(f"clip_core/model/{name}.py" for name in ("__init__", "contract")),
    *(f"clip_core/serve/{name}.py" for name in ("__init__", "approximate", "index", "milvus", "queries")),
    *(f"clip_core/serve/triton_{name}.py" for name in ("classify", "edge", "models", "search")),
)


class Gallery(NamedTuple):
    """Pictures that can be found, and their index."""

    store: Path
    index: Path


def assemble(onnx: Path, galleries: Mapping[str, Gallery], golden: Golden, k: int, triton: Triton, folder: Path) -> str:
    """Writes all files of a release into the empty folder `folder`, but its manifest; returns its id.

    `k` pictures are found; `triton` says what the models take of a machine.
    UserError when an index or the golden answers were made by other weights.
    """
    contract, weights = read_contract(onnx), weights_id(onnx)
    approximate = {}
    for name, gallery in galleries.items():
        if not GALLERY_NAME.fullmatch(name):
            raise UserError(f"gallery {name!r}: a name has small letters, digits, - and _, and 32 of them at most")
        index = read_index(gallery.index)
        if index.approximate:
            approximate[name] = index.recall
        made_by = index.weights_id
        if not made_by == weights == golden.weights_id:
            raise UserError(
                f"{gallery.index}: made by weights {made_by}, but {onnx} holds {weights} and the golden answers are "
                f"of {golden.weights_id}. Run `dvc repro` again."
            )
    check_space(folder.parent, [onnx, *(place for gallery in galleries.values() for place in gallery)])
    lengths = lengths_of(contract.context_length)
    values = {
        **{"embed_dim": contract.embed_dim, "image_size": contract.image_size, "top_k": k},
        **triton.model_dump(),
        "tensorrt": Template(TENSORRT).substitute(precision=triton.tensorrt.upper()) if triton.tensorrt else "",
        "warm_texts": ", ".join(WARM_TEXT.substitute(length=length) for length in lengths),
    }
    for model, files in MODELS.items():
        version = folder / "models" / model / "1"
        _fill_templates(TEMPLATES / model, version.parent, values)
        version.mkdir(exist_ok=True)
        if model == "text_core":
            (version.parent / "warmup").mkdir()
            for length in lengths:  # no padding: a text of nothing else has no features
                np.ones(length, dtype=np.int64).tofile(version.parent / "warmup" / f"length-{length}")
        for source, name in files.items():
            shutil.copy2(onnx / source, version / name)
            if (weights_file := onnx / f"{source}.data").exists():  # of a large graph; it finds them by this name
                shutil.copy2(weights_file, version / weights_file.name)
        if (version / "model.py").exists():
            for file in SERVING_CODE:
                (version / "code" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CODE / file, version / "code" / file)
    for name, gallery in galleries.items():
        shutil.copytree(gallery.index, folder / "models" / "clip_search" / "1" / "galleries" / name)
        shutil.copytree(gallery.store, folder / "galleries" / name)
    if read_calibration(onnx, weights):
        for place in (folder, folder / "models" / "clip_classify" / "1"):
            shutil.copy2(onnx / CALIBRATION_FILE, place / CALIBRATION_FILE)
    write_golden(golden._replace(approximate=approximate), folder / "golden")
    return state_id(folder)


def state_id(folder: Path) -> str:
    """Writes the id of the release in `folder` to where its models find it; returns it."""
    release = id_of(sums_of(folder))
    for model in ANSWERS_WITH_ID:
        (folder / "models" / model / "1" / STATES_ID).write_text(f"{release}\n", encoding="utf-8")
    return release


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


def _fill_templates(template: Path, folder: Path, values: Mapping[str, object]) -> None:
    for file in sorted(template.rglob("*")):
        if file.is_file() and file.suffix in (".pbtxt", ".py"):
            target = folder / file.relative_to(template)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(file.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
