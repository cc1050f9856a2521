"""Both towers as ONNX files, published only when they compute what torch computes."""

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from clip_core.config.export import Export
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write, replacing_folder, sha256_file
from clip_core.inference.calibration import CALIBRATION_FILE, read_calibration
from clip_core.inference.first_token import keep_first_tokens
from clip_core.inference.predictor import Predictor, encode_pictures
from clip_core.inference.torch_towers import TorchTowers
from clip_core.model.clip import CLIP
from clip_core.model.contract import (
    MODEL_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    WEIGHTS_SUM,
    Contract,
    read_contract,
    weights_id,
)
from clip_core.model.matryoshka import narrow
from clip_core.model.weights import load_weights
from clip_core.serve.parity import measure_parity, shapes
from clip_core.text import load_tokenizer

if TYPE_CHECKING:
    from clip_core.data.store import Store

MAX_BATCH = 256
OPSET = 20  # of an export outside the pipeline, whose own is in params.yaml
MAX_DIFFERENCE = 1e-4
MAX_BYTES = 64 * 2**20  # of weights within a file: protobuf takes their memory five times, and ends at 2 GB
EXPORTED = {  # what an export may hold
    *(f"{tower}.onnx{data}" for tower in ("text", "image") for data in ("", ".data")),
    MODEL_FILE,
    TOKENIZER_FILE,
    WEIGHTS_SUM,
    CALIBRATION_FILE,
    "parity.json",
}


class TextTower(nn.Module):
    """`token_ids` -> `text_features`, as ONNX wants it: one forward."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.model.encode_texts(token_ids)


class ImageTower(nn.Module):
    """`pixels` -> `image_features`."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_images(pixels)


def export(
    model: Path, store: "Store", texts: list[str], params: Export, out: Path, calibration: Path | None = None
) -> dict:
    """Writes the export of the weights folder `model` into `out` and returns its parity with torch.

    It carries the file `calibration`. Raises UserError when that is of other weights, or the parity is worse than
    `params` allow; `out` then stays as it was.
    """
    clip = load_weights(model)
    narrow(clip, params.width or clip.architecture.embed_dim)
    contract = read_contract(model).model_copy(update={"architecture": clip.architecture})
    tokenizer = load_tokenizer(model / contract.tokenizer, contract.context_length)
    predictor = Predictor(TorchTowers(clip), tokenizer, contract, "")
    with tempfile.TemporaryDirectory() as expected, replacing_folder(out) as aside:
        print("torch's features of the test data", flush=True)
        _write_expected(clip, predictor, store, texts, Path(expected))
        print("exporting the towers", flush=True)
        write_onnx(clip, contract, params.opset, aside)
        _write_facts(model, contract, aside)
        if calibration:
            shutil.copy2(calibration, aside / CALIBRATION_FILE)
            read_calibration(aside, weights_id(aside))
        print("onnxruntime's features of the test data", flush=True)
        parity = measure_parity(Path(expected), aside, store.folder, params)
        (aside / "parity.json").write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
    return parity


def export_alone(model: Path, out: Path) -> None:
    """Writes the export of the weights folder `model` into `out`, without a pipeline's data.

    Raises UserError when onnxruntime does not compute what torch does, or when `out` is there and no export; it then
    stays as it was.
    """
    _check_place(out)
    contract, clip = read_contract(model), load_weights(model)
    draw = np.random.default_rng(0)
    token_ids = draw.integers(1, contract.architecture.text_tower.vocab_size, (3, contract.context_length))
    token_ids[1:, contract.context_length // 2 :] = 0
    pixels = draw.integers(0, 256, (2, 3, contract.image_size, contract.image_size), dtype=np.uint8)
    towers = TorchTowers(clip)
    expected = {"text": towers.encode_texts(token_ids), "image": towers.encode_images(pixels)}
    with replacing_folder(out) as aside:
        write_onnx(clip, contract, OPSET, aside)
        _write_facts(model, contract, aside)
        del clip, towers

        from clip_core.inference.onnx_towers import open_session, run  # torch has had its say

        for tower, rows in (("text", token_ids), ("image", pixels)):
            difference = np.abs(run(open_session(aside / f"{tower}.onnx"), rows) - expected[tower]).max()
            if not difference <= MAX_DIFFERENCE:
                raise UserError(
                    f"the exported {tower} tower differs from torch by {difference:.2e}; nothing is written"
                )


def _check_place(out: Path) -> None:
    """Raises UserError unless `out` is new, empty, or holds an earlier export and nothing else."""
    if not (out.exists() or out.is_symlink()):
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() and not out.is_symlink() else {out.name}
    if names and not (names <= EXPORTED and {"text.onnx", "image.onnx"} <= names):
        raise UserError(f"{out}: is there already and no export alone; name a new folder, or remove it first")


def _write_facts(model: Path, contract: Contract, folder: Path) -> None:
    shutil.copy2(model / contract.tokenizer, folder / contract.tokenizer)
    if (model / CALIBRATION_FILE).exists():
        shutil.copy2(model / CALIBRATION_FILE, folder / CALIBRATION_FILE)
    atomic_write(folder / MODEL_FILE, contract.model_dump_json(indent=2) + "\n")
    (folder / WEIGHTS_SUM).write_text(sha256_file(model / WEIGHTS_FILE), encoding="utf-8")


def write_onnx(clip: CLIP, contract: Contract, opset: int, folder: Path) -> None:
    """Writes `text.onnx` and `image.onnx` with dynamic batch and length; features are normalised inside.

    Weights that are too many for one file lie beside it, as `image.onnx.data`. The model is rewritten: it has served.
    """
    keep_first_tokens(clip)
    batch, length = (
        torch.export.Dim("batch", min=1, max=MAX_BATCH),
        torch.export.Dim("length", min=2, max=contract.context_length),
    )
    token_ids = torch.ones(3, contract.context_length // 2 + 1, dtype=torch.int64)
    pixels = torch.zeros(3, 3, contract.image_size, contract.image_size, dtype=torch.uint8)
    _write(TextTower(clip), "token_ids", token_ids, {0: batch, 1: length}, "text_features", opset, folder / "text.onnx")
    _write(ImageTower(clip), "pixels", pixels, {0: batch}, "image_features", opset, folder / "image.onnx")


def _write(
    tower: TextTower | ImageTower, name: str, example: Tensor, dims: dict, output: str, opset: int, file: Path
) -> None:
    # torch's exporter imports both; here they are named so that their versions count, see clip_core/code.py
    import onnx  # noqa: F401
    import onnxscript  # noqa: F401

    program = torch.onnx.export(
        tower.eval(),
        (example,),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes={name: dims},
        input_names=[name],
        output_names=[output],
        verbose=False,
    )
    assert program is not None
    model = program.model
    for node in model.graph.all_nodes():  # stack traces of this machine: not reproducible, nobody's business
        node.metadata_props.clear()
    program.model.metadata_props["logit_scale"] = repr(math.exp(tower.model.logit_scale.item()))
    weights = [
        value.const_value for value in program.model.graph.initializers.values() if value.const_value is not None
    ]
    program.save(file, external_data=sum(tensor.nbytes for tensor in weights) > MAX_BYTES)


def _write_expected(clip: CLIP, predictor: Predictor, store: "Store", texts: list[str], folder: Path) -> None:
    with torch.inference_mode():
        for number, (tower, rows) in enumerate(shapes(predictor.contract)):
            encode = clip.encode_texts if tower == "text" else clip.encode_images
            np.save(folder / f"shape-{number}.npy", encode(torch.from_numpy(rows)).numpy())
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    np.save(folder / "texts.npy", predictor.encode_texts(texts))
    np.save(folder / "images.npy", encode_pictures(predictor, store))


def main() -> None:
    """Runs the command; a mistake of the user's becomes a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.export", description=__doc__)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS_FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or an earlier export")
    arguments = parser.parse_args()
    with told_to_the_user(OSError, SafetensorError):
        export_alone(arguments.weights, arguments.out)
    print(f"{arguments.out}: computes what torch does", file=sys.stderr)


if __name__ == "__main__":
    main()
