"""The five models of the paper go from the released layout to ours and back to the bit, with the same features."""

import gc
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from clip_core.model.contract import read_contract
from clip_core.model.pretrained.exporting import CN_CLIP_NAMES, export_weights
from clip_core.model.pretrained.importing import import_checkpoint
from clip_core.model.pretrained.recognise import name_of
from clip_core.model.weights import load_weights
from tests.released import fill, save_as_released, with_prefix, without_init

PARAMETERS = {
    "rn50": 76_989_537,
    "vit-b-16": 188_262_913,
    "vit-l-14": 406_233_089,
    "vit-l-14-336": 406_560_769,
    "vit-h-14": 957_598_209,
}
TEXTS = ["杰尼龟", "一只黑色的cat"]


def reference_model(name: str) -> Any:
    from cn_clip.clip.utils import create_model

    vision, text, _ = CN_CLIP_NAMES[name]
    with without_init():
        model = create_model(f"{vision}@{text}")
    model.float()
    fill(model)
    return model.eval()


@torch.inference_mode()
def features_of_the_reference(model: Any, pixels: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    from cn_clip.clip import tokenize

    images = model.encode_image((pixels / 255 - mean) / std)
    return normalize(images, dim=-1), normalize(model.encode_text(tokenize(TEXTS)), dim=-1)


@torch.inference_mode()
def assert_ours_are_the_same(folder: Path, pixels: Tensor, wanted: tuple[Tensor, Tensor]) -> None:
    from cn_clip.clip import tokenize

    model = load_weights(folder)
    torch.testing.assert_close(model.encode_images(pixels), wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_texts(tokenize(TEXTS)), wanted[1], atol=1e-5, rtol=0)


@torch.inference_mode()
def assert_transformers_are_the_same(folder: Path, normalised: Tensor, wanted: tuple[Tensor, Tensor]) -> None:
    from cn_clip.clip import tokenize
    from transformers import ChineseCLIPModel

    model, ids = ChineseCLIPModel.from_pretrained(folder).eval(), tokenize(TEXTS)
    images = model.get_image_features(normalised).pooler_output
    texts = model.get_text_features(ids, attention_mask=(ids != 0).long()).pooler_output
    torch.testing.assert_close(normalize(images, dim=-1), wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(texts, dim=-1), wanted[1], atol=1e-5, rtol=0)


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("name", PARAMETERS)
def test_released_weights_go_in_and_out_to_the_bit_with_the_same_features(name: str, tmp_path: Path) -> None:
    from cn_clip.clip import load_from_name

    size = CN_CLIP_NAMES[name][2]
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8))
    reference = reference_model(name)
    save_as_released(reference, tmp_path / "released.pt")
    import_checkpoint(tmp_path / "released.pt", tmp_path / "weights", None, None)
    contract = read_contract(tmp_path / "weights")
    assert name_of(contract.architecture) == name
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (contract.preprocessing.mean, contract.preprocessing.std)
    )
    wanted = features_of_the_reference(reference, pixels, mean, std)
    assert sum(parameter.numel() for parameter in reference.parameters()) == PARAMETERS[name]
    del reference
    gc.collect()
    assert_ours_are_the_same(tmp_path / "weights", pixels, wanted)

    export_weights(tmp_path / "weights", tmp_path / "back.pt", "ofa")
    before, after = (torch.load(tmp_path / f, mmap=True)["state_dict"] for f in ("released.pt", "back.pt"))
    assert_same_tensors(before, after)
    vision, text, size = CN_CLIP_NAMES[name]
    with without_init():
        reference, _ = load_from_name(str(tmp_path / "back.pt"), "cpu", "", vision, text, size)
    for one, other in zip(features_of_the_reference(reference.eval(), pixels, mean, std), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    del reference, before, after
    gc.collect()
    (tmp_path / "back.pt").unlink()

    if name == "rn50":
        with pytest.raises(ValueError, match="no class for a Chinese-CLIP with a ResNet"):
            export_weights(tmp_path / "weights", tmp_path / "transformers", "transformers")
        shutil.rmtree(tmp_path)
        return
    export_weights(tmp_path / "weights", tmp_path / "transformers", "transformers")
    assert_transformers_are_the_same(tmp_path / "transformers", (pixels / 255 - mean) / std, wanted)
    import_checkpoint(tmp_path / "transformers", tmp_path / "again", None, None)
    assert_same_tensors(*(load_file(tmp_path / folder / "model.safetensors") for folder in ("weights", "again")))
    shutil.rmtree(tmp_path)


RELEASED_DIR = os.environ.get("CLIP_RELEASED_DIR")


@pytest.mark.skipif(RELEASED_DIR is None, reason="CLIP_RELEASED_DIR names no folder of released Chinese-CLIP files")
def test_real_released_files_go_in_and_out_to_the_bit(tmp_path: Path) -> None:
    files = sorted(Path(str(RELEASED_DIR)).glob("*.pt"))
    assert files, f"{RELEASED_DIR} holds no .pt file"
    for file in files:
        import_checkpoint(file, tmp_path / "weights", None, None)
        assert name_of(read_contract(tmp_path / "weights").architecture) in PARAMETERS
        export_weights(tmp_path / "weights", tmp_path / "back.pt", "ofa")
        tensors = torch.load(file, mmap=True, weights_only=True, map_location="cpu")["state_dict"]
        used = {n.removeprefix("module."): t for n, t in tensors.items() if "bert.pooler" not in n}
        back = torch.load(tmp_path / "back.pt", mmap=True, weights_only=True)["state_dict"]
        wanted = {n: t.float() if t.is_floating_point() else t for n, t in with_prefix(used).items()}
        assert_same_tensors(back, wanted)
