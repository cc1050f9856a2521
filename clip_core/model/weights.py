"""Weights folders: `model.safetensors`, `model.json` and `tokenizer.json`, and nothing else."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from clip_core.files import atomic_write, replacing_folder
from clip_core.model.clip import CLIP
from clip_core.model.contract import MODEL_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Contract, Made, read_contract


def save_weights(model: CLIP, tokenizer_json: str, folder: Path, made: Made) -> None:
    """Writes the weights folder, whole or not at all; the same model gives the same bytes."""
    contract = Contract(architecture=model.architecture, made=made)
    with replacing_folder(folder) as aside:
        atomic_write(aside / WEIGHTS_FILE, save({name: t.contiguous() for name, t in model.state_dict().items()}))
        atomic_write(aside / MODEL_FILE, contract.model_dump_json(indent=2) + "\n")
        atomic_write(aside / TOKENIZER_FILE, tokenizer_json)


def load_weights(folder: Path) -> CLIP:
    """The model in the weights folder, ready for use (eval mode); needs nothing else."""
    architecture = read_contract(folder).architecture
    path = folder / WEIGHTS_FILE
    with torch.random.fork_rng(devices=[]):  # building draws numbers that loading overwrites
        model = CLIP(architecture)
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a weights folder: it has no {WEIGHTS_FILE}") from None
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: not the weights that {MODEL_FILE} describes: {error}") from None
    return model.eval()
