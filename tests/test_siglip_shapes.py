"""SigLIP 2 in its real shapes: from the released layout to ours and back to the bit, with transformers' features."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import clip_core
from clip_core.model.contract import read_contract
from clip_core.model.costs import architecture_of, on_meta, parameters_by_part
from clip_core.model.pretrained.exporting import export_weights
from clip_core.model.pretrained.importing import import_checkpoint
from clip_core.model.pretrained.recognise import name_of
from clip_core.model.registry import MODELS, SIGLIP2_SIZES
from tests.proofs.family import SLOW
from tests.siglip import (
    assert_same_tensors,
    save_as_released,
    siglip2,
    their_features,
    their_token_ids,
    without_numbers,
)

NAMES = [name for name in MODELS if name.startswith("siglip2")]
TEXTS = ["杰尼龟", "一只黑色的cat"]
RELEASED_DIR = os.environ.get("CLIP_RELEASED_DIR")


def configs(name: str) -> dict[str, dict[str, Any]]:
    """What the released config.json says of both towers."""
    _, size, patch_size, image_size = name.split("-")
    width, layers, heads, hidden = SIGLIP2_SIZES[{"b": "base", "l": "large"}.get(size, size)]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    shape["intermediate_size"] = hidden
    vision = {**shape, "patch_size": int(patch_size), "image_size": int(image_size)}
    return {"vision": vision, "text": {**shape, "projection_size": width}}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_exactly_the_parameters_of_transformers(name: str) -> None:
    with torch.device("meta"):
        theirs = without_numbers(256_000, **configs(name))
    ours = parameters_by_part(on_meta(architecture_of(name)))
    assert sum(ours.values()) == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep gigabytes


def pixels_of(side: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8))


Asked = tuple[Tensor, Tensor, tuple[Tensor, Tensor]]  # pixels, token ids, features of transformers


def asked_of(released: Path, model: Any) -> Asked:
    pixels, token_ids = pixels_of(model.config.vision_config.image_size), their_token_ids(released, TEXTS)
    return pixels, token_ids, their_features(model, token_ids, pixels)


def goes_in_and_out(released: Path, folder: Path, asked: Asked) -> str:
    """Asserts that it does, with these features; gives the name that the import is recognised by."""
    pixels, token_ids, wanted = asked
    folder.mkdir()
    import_checkpoint(released, folder / "weights", None, None)
    towers = clip_core.load(folder / "weights").towers
    found = towers.encode_images(pixels.numpy()), towers.encode_texts(token_ids.numpy())
    differences = [float(np.abs(one - other.numpy()).max()) for one, other in zip(found, wanted, strict=True)]
    assert max(differences) < 1e-5
    del towers
    gc.collect()
    export_weights(folder / "weights", folder / "back", "transformers")
    there, back = (load_file(place / "model.safetensors") for place in (released, folder / "back"))
    assert_same_tensors(there, back)
    name = name_of(read_contract(folder / "weights").architecture)
    print(f"\n| {name} | {len(back)} tensors equal | pictures {differences[0]:.1e} | texts {differences[1]:.1e} |")
    shutil.rmtree(folder)
    return name


@pytest.mark.usefixtures("much_memory")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NAMES])
def test_siglip_2_goes_in_and_out_to_the_bit_with_the_same_features(name: str, folder: Path) -> None:
    theirs = siglip2(256_000 if name in SLOW else 8_000, **configs(name))  # half of B/16 is its vocabulary
    released = save_as_released(theirs, folder / "released", **configs(name))
    asked = asked_of(released, theirs)
    del theirs  # two of the largest would not fit into memory
    gc.collect()
    assert goes_in_and_out(released, folder / "there", asked) == name


@pytest.mark.skipif(RELEASED_DIR is None, reason="CLIP_RELEASED_DIR names no folder of released SigLIP 2 folders")
def test_real_released_folders_go_in_and_out_to_the_bit_with_transformers_features(folder: Path) -> None:
    from transformers import SiglipModel

    folders = sorted(Path(str(RELEASED_DIR)).glob("siglip2-*/"))
    assert folders, f"{RELEASED_DIR} holds no folder siglip2-*"
    for released in folders:
        asked = asked_of(released, SiglipModel.from_pretrained(released).eval())
        gc.collect()
        assert goes_in_and_out(released, folder / "there", asked) in NAMES
