"""Chinese CLIP: `clip_core.load(folder)` gives a `Predictor`."""

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from clip_core.errors import UserError

if TYPE_CHECKING:
    from clip_core.inference.predictor import Predictor

__all__ = ["load"]
EXTRAS = {"clip_core.serve.bulk": "bulk", "clip_core.serve": "serve", "clip_core.model": "torch"}  # of commands


def load(
    folder: str | Path, device: str = "auto", precision: str = "fp32", runtime: str = "torch", width: int | None = None
) -> "Predictor":
    """The model in the weights folder: Chinese texts and pictures in, unit vectors out.

    - `device`: "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:1".
    - `precision`: "fp32", in which features agree with the reference to 1e-5 on every machine; "bf16", several times as
      fast where the device multiplies it in hardware; "auto" takes bf16 there and fp32 elsewhere. `Predictor.precision`
      and `Predictor.device` say what was taken.
    - `runtime`: "torch", or "onnx": the exported graph in onnxruntime, on the CPU in fp32. `folder` may then be an
      export (`models/onnx`), too; of weights, the export is made on first use and kept beside the folder.
    - `width`: features of so many numbers, for a model trained with `model.matryoshka`.
    """
    # Imported on first use, so that light commands do not pay for torch.
    try:
        if runtime == "torch":
            from clip_core.inference.predictor import load as load_in_torch

            return load_in_torch(folder, device, precision, width)
        if runtime == "onnx":
            from clip_core.inference.onnx_predictor import load as load_in_onnx

            return load_in_onnx(folder, device, precision, width)
    except ModuleNotFoundError as error:
        raise UserError(f"{error}; install clip-core[{'torch' if runtime == 'torch' else 'serve'}]") from None
    raise UserError(f"runtime {runtime!r} is neither 'torch' nor 'onnx'")


def _name_the_extra(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Says of a command that lacks a package what to install; shows every other error as Python does."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "clip_core").startswith("clip_core"):
        sys.__excepthook__(kind, error, trace)
        return
    extras = [extra for start, extra in EXTRAS.items() for word in sys.orig_argv if word.startswith(start)]
    print(f"error: {error}; install clip-core[{[*extras, 'pipeline'][0]}]", file=sys.stderr)


if sys.argv[:1] == ["-m"]:  # `python -m clip_core...`: its imports come before anything of it could catch an error
    sys.excepthook = _name_the_extra
