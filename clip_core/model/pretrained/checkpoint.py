"""Reads the tensors of other people's checkpoints; nothing in them is executed."""

import json
import pickle  # for the name of an error alone: nothing is unpickled but by torch, with weights_only=True
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_core.errors import UserError
from clip_core.files import sha256_file

WEIGHTS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
CONFIGS = ("config.json", "open_clip_config.json")
# What torch.load raises for bytes that are no checkpoint.
BROKEN = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
    zipfile.BadZipFile,
)
BROKEN_FILE = "not a checkpoint of torch, or not a whole one; download or copy it again"
CONTAINERS = ("state_dict", "model")  # beside them: epoch, optimizer, ...


@dataclass(frozen=True)
class Checkpoint:
    """A file, or a folder as Hugging Face has them, with tensors under their own names."""

    source: Path
    files: tuple[Path, ...]
    tensors: dict[str, Tensor]
    config: dict[str, Any]  # of a folder; empty for a file

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def fingerprint(self) -> str:
        """The names and sha256 of the files that hold the tensors."""
        return ", ".join(f"{path.name} sha256 {sha256_file(path)}" for path in self.files)


def read_checkpoint(source: Path) -> Checkpoint:
    """The tensors of a file or folder, mapped rather than read where the file allows it.

    Raises UserError for what is no checkpoint, and for what would have to be executed.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    files = _files_in(source) if source.is_dir() else (source,)
    tensors: dict[str, Tensor] = {}
    held_in: dict[str, Path] = {}
    for path in files:
        found = _unwrapped(path, _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path))
        if twice := [f"{name} in {held_in[name].name}" for name in found if name in held_in]:
            raise UserError(
                f"{path}: which to take of these is unknown, as each lies here and in another file: "
                f"{', '.join(twice)}; download the whole folder again"
            )
        held_in |= dict.fromkeys(found, path)
        tensors |= found
    return Checkpoint(source, files, _without_prefix(source, tensors), _read_config(source) if source.is_dir() else {})


def _files_in(folder: Path) -> tuple[Path, ...]:
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            outside = [shard for shard in shards if Path(shard).name != shard]
            missing = [shard for shard in shards if not (folder / shard).exists()]
            if not shards or outside or missing:
                raise UserError(f"{index}: {missing=}, {outside=}; download the whole folder again")
            return tuple(folder / shard for shard in shards)
        if (folder / name).exists():
            return (folder / name,)
    raise UserError(f"{folder}: holds none of {', '.join(WEIGHTS)}, whole or in shards")


def _read_config(folder: Path) -> dict[str, Any]:
    for name in CONFIGS:
        if (folder / name).exists():
            return read_json(folder / name)
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not an object")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None


def _read_pickle(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # files of torch before 1.6 are not, and are read
    if mapped and any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.+)", name) for name in _names_in_archive(path)):
        raise UserError(
            f"{path}: a TorchScript archive, which is a program and is not run here. Where you trust it, make "
            f"plain tensors of it: python -c \"import torch; torch.save(torch.jit.load('{path.name}', "
            f"map_location='cpu').state_dict(), 'tensors.pt')\", then import tensors.pt"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"Unsupported global: GLOBAL (\S+)|Unsupported .+", str(error)):
            raise UserError(
                f"{path}: holds more than tensors and plain values ({refused[1] or refused[0]}), and loading it would "
                "run code. Where you trust it, save its tensors alone: torch.save(model.state_dict(), 'tensors.pt')"
            ) from None
        raise UserError(f"{path}: {BROKEN_FILE}") from None
    except BROKEN:
        raise UserError(f"{path}: {BROKEN_FILE}") from None


def _names_in_archive(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except BROKEN:
        raise UserError(f"{path}: {BROKEN_FILE}") from None


def _unwrapped(path: Path, content: Any) -> dict[str, Tensor]:
    for container in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors, but {', '.join(map(str, list(content)[:10])) or 'nothing'}")
    return tensors


def _without_prefix(source: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Distributed training's wrapper leaves a prefix before every name, or, after hand work, before some."""
    if twice := [name for name in tensors if f"module.{name}" in tensors]:
        raise UserError(
            f"{source}: which to take of these is unknown, as each lies there with and without the prefix module.: "
            f"{', '.join(twice)}; save one of each"
        )
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
