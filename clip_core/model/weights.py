"""Weights folders: `model.safetensors`, `model.json` and `tokenizer.json`, and nothing else.

Saving and loading need the memory of the weights once: a model is built without weights, and each tensor is read
into memory of its own. Reading rather than mapping the file: what is trained can never reach the file, the file may
change under a running process, and tensors lie aligned, on which the last bits of matrix products depend.
"""

import json
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from clip_core.errors import UserError
from clip_core.files import atomic_write, replacing_folder
from clip_core.model.clip import CLIP
from clip_core.model.contract import (
    MODEL_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Architecture,
    Contract,
    Made,
    read_contract,
)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def save_weights(model: CLIP, tokenizer_json: str, folder: Path, made: Made) -> None:
    """Writes the weights folder, whole or not at all; the same model gives the same bytes."""
    contract = Contract(architecture=model.architecture, made=made)
    with replacing_folder(folder) as aside:
        atomic_write(aside / MODEL_FILE, contract.model_dump_json(indent=2) + "\n")
        atomic_write(aside / TOKENIZER_FILE, tokenizer_json)
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, aside / WEIGHTS_FILE)


def load_weights(folder: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> CLIP:
    """The model in the weights folder, ready for use (eval mode); needs nothing else.

    With `dtype` its floating point numbers are converted, one tensor at a time. Raises UserError when the folder is
    not whole or its files do not belong together.
    """
    path = folder / WEIGHTS_FILE
    architecture = read_contract(folder).architecture
    try:
        model = without_weights(architecture)
    except ValueError as error:
        raise UserError(f"{folder / MODEL_FILE}: {error}") from None
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:  # checks the header and the length
            found = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(
            f"{folder}: not a whole weights folder: it has no {WEIGHTS_FILE}; copy the folder again"
        ) from None
    except SafetensorError as error:
        raise UserError(
            f"{path}: not the weights that {MODEL_FILE} describes: no whole safetensors file ({error}); "
            "copy the folder again"
        ) from None
    if differences := differing(wanted, found):
        raise UserError(
            f"{path}: not the weights that {MODEL_FILE} describes:\n{differences}\nBoth files must be of one model: "
            "copy the folder again"
        )
    model.load_state_dict(dict(_tensors(path, dtype, device)), assign=True)
    return model.to(device).eval()  # the constants that are no weights follow


def without_weights(architecture: Architecture) -> CLIP:
    """The model with parameters that take no memory; the constants that are no weights are there as they must be."""
    with torch.random.fork_rng(devices=[]):  # initialising draws numbers
        try:
            with _parameters_without_memory():
                model = CLIP(architecture)
        except RuntimeError:  # a tower that computes with its parameters while it is built
            return CLIP(architecture)
        # as Swin's masks, which are made where a parameter lies
        return CLIP(architecture) if any(buffer.is_meta for buffer in model.buffers()) else model


@contextmanager
def _parameters_without_memory() -> Generator[None]:
    builder = threading.get_ident()

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != builder:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)  # ty: ignore[invalid-argument-type]  (its own type is wrong)
    try:
        yield
    finally:
        handle.remove()


def differing(wanted: dict[str, torch.Size], found: dict[str, torch.Size]) -> str:
    """Every missing, unexpected and mis-shaped tensor, a line each; empty when there is none."""
    lines = [f"  missing: {name} {_shape(wanted[name])}" for name in wanted if name not in found]
    lines += [f"  unexpected: {name} {_shape(found[name])}" for name in found if name not in wanted]
    lines += [
        f"  other shape: {name} is {_shape(found[name])}, wanted is {_shape(wanted[name])}"
        for name in wanted
        if name in found and wanted[name] != found[name]
    ]
    return "\n".join(lines)


def _shape(size: torch.Size) -> str:
    return f"({', '.join(map(str, size))})"


def _tensors(path: Path, dtype: torch.dtype | None, device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file that has been checked, one after another."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in DTYPES:
                raise UserError(f"{path}: {name} holds {entry['dtype']}; this version reads {', '.join(DTYPES)}")
            tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
            file.seek(8 + length + entry["data_offsets"][0])
            file.readinto(tensor.view(-1).view(torch.uint8).numpy())
            yield name, tensor.to(device, dtype if tensor.is_floating_point() else None)
