"""Where results may be written, and writing tensors so that a full disk gives a message."""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clip_core.errors import UserError
from clip_core.model.contract import MODEL_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from clip_core.model.pretrained.checkpoint import read_json

IMPORTED = (  # what an import leaves: a weights folder, an image tower, a BERT
    {MODEL_FILE, WEIGHTS_FILE, TOKENIZER_FILE},
    {"config.json", WEIGHTS_FILE},
    {"config.json", WEIGHTS_FILE, "vocab.txt"},
)
FULL = 2**20  # fewer free bytes: that is why writing failed


def check_import_place(out: Path, *sources: Path) -> None:
    """Raises UserError unless `out` is new, or an earlier import, which may be replaced."""
    for source in sources:
        if out.resolve() in (source.resolve(), *source.resolve().parents):
            raise UserError(f"{out}: is or holds {source}, which would be lost with it; name a new folder")
    if (out.exists() or out.is_symlink()) and not _is_import(out):
        raise UserError(f"{out}: is there already and no earlier import; name a new folder, or remove it first")


def check_export_place(out: Path) -> None:
    """Raises UserError unless `out` is new."""
    if out.exists() or out.is_symlink():
        what = "a folder that" if out.is_dir() else "a file that"
        raise UserError(f"{out}: {what} is there already; name a new place, or remove it first")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file."""
    with _said_when_unwritten(path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def save_checkpoint(content: dict, path: Path) -> None:
    """Writes a file of torch."""
    with _said_when_unwritten(path):
        torch.save(content, path)


def _is_import(out: Path) -> bool:
    if out.is_symlink() or not out.is_dir():
        return False
    names = {path.name for path in out.iterdir()}
    if not names:
        return True
    if names not in IMPORTED:
        return False
    try:
        if MODEL_FILE in names:
            return read_json(out / MODEL_FILE)["made"]["stage"] == "import"
        return "sha256" in read_json(out / "config.json")["source"]
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def _said_when_unwritten(path: Path) -> Generator[None]:
    """Makes an OSError of what the writers of tensors raise."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        full = f"os error {errno.ENOSPC}" in str(error) or shutil.disk_usage(path.parent).free < FULL
        reason = str(error).partition("\n")[0][:200]
        raise OSError(errno.ENOSPC if full else errno.EIO, f"could not be written: {reason}", str(path)) from None
