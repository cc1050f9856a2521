"""`clip_core.load(folder, runtime="onnx")`: the exported graph in onnxruntime, behind the same Predictor."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np

from clip_core.errors import UserError
from clip_core.inference.calibration import read_calibration
from clip_core.inference.onnx_towers import open_session, run
from clip_core.inference.predictor import Predictor, tokenizer_in
from clip_core.model.contract import WEIGHTS_SUM, read_contract, weights_id


class OnnxTowers:
    """The two towers of an export, on the CPU in fp32."""

    runtime, device = "onnx", "cpu"
    precision: Literal["fp32"] = "fp32"
    texts_at_once, images_at_once = 64, 8  # their numbers stay in the CPU's cache

    def __init__(self, text: Path, image: Path) -> None:
        asked = os.environ.get("OMP_NUM_THREADS", "")  # what limits torch, too
        num_threads = int(asked) if asked.isdecimal() and asked != "0" else os.cpu_count() or 1
        self._text = open_session(text, num_threads)
        self._image = open_session(image, num_threads)
        self.logit_scale = float(self._text.get_modelmeta().custom_metadata_map["logit_scale"])

    def encode_texts(self, token_ids: np.ndarray) -> np.ndarray:
        """int64 (n, length), padded with 0 -> float32 (n, embed_dim), L2-normalised."""
        return run(self._text, token_ids)

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, 3, image_size, image_size) -> float32 (n, embed_dim), L2-normalised."""
        return run(self._image, pixels)


def load(folder: str | Path, device: str = "auto", precision: str = "fp32", width: int | None = None) -> Predictor:
    """The model in the weights folder, or in an export of it; `clip_core.load` says what the arguments mean."""
    if device not in ("auto", "cpu"):
        raise UserError(f"device {device!r}: runtime 'onnx' runs on the CPU; runtime 'torch' knows GPUs")
    if precision not in ("auto", "fp32"):
        raise UserError(f"precision {precision!r}: runtime 'onnx' computes in fp32; runtime 'torch' knows bf16")
    if precision == "auto":
        print("precision auto: fp32, which is what runtime 'onnx' computes in", file=sys.stderr)
    folder = Path(folder)
    contract = read_contract(folder)
    tokenizer = tokenizer_in(folder, contract)
    onnx = folder if (folder / "image.onnx").exists() else exported(folder)
    if not (onnx / WEIGHTS_SUM).exists():
        again = f"`python -m clip_core.serve.export WEIGHTS_FOLDER {onnx}`"
        raise UserError(f"{onnx}: an export of an older version: export it again with {again}, or load the weights")
    weights, towers = weights_id(onnx, width), OnnxTowers(onnx / "text.onnx", onnx / "image.onnx")
    return Predictor(towers, tokenizer, contract, weights, width, read_calibration(folder, weights))


def exported(folder: Path) -> Path:
    """The export of the weights folder, kept beside it.

    It is made when there is none, or one of other weights, or by an older version.
    """
    folder = folder.resolve()
    kept = folder.with_name(f".{folder.name}.onnx")
    if not (kept / WEIGHTS_SUM).exists() or weights_id(kept) != weights_id(folder):
        if not os.access(folder.parent, os.W_OK):
            raise UserError(
                f"{folder.parent}: no place for the export, since it is read-only. Export to another folder with "
                f"`python -m clip_core.serve.export {folder} FOLDER` and load that"
            )
        print(f"exporting {folder.name} to ONNX, once: {kept}", file=sys.stderr, flush=True)
        # in a process of its own, whose torch takes its memory along when it is done
        command = [sys.executable, "-m", "clip_core.serve.export", str(folder), str(kept)]
        places = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)  # imports there what it does here
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": places})
    return kept
