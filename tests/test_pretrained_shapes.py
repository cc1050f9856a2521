"""The five models of the paper go from the released layout to ours and back to the bit, with the same features."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_core.config.model import ImageTower
from clip_core.image import AS_RELEASED
from clip_core.model.contract import Architecture, TextArchitecture, read_contract
from clip_core.model.pretrained.exporting import CN_CLIP_NAMES, export_weights, how_cn_clip_loads
from clip_core.model.pretrained.importing import import_checkpoint
from clip_core.model.pretrained.recognise import name_of
from clip_core.model.registry import MODELS, VOCABULARY
from clip_core.model.weights import load_weights
from tests.proofs.family import SLOW
from tests.released import fill, save_as_released, with_prefix, without_init

PARAMETERS = {
    "rn50": 76_989_537,
    "vit-b-16": 188_262_913,
    "vit-l-14": 406_233_089,
    "vit-l-14-336": 406_560_769,
    "vit-h-14": 957_598_209,
}
NAMES = list(PARAMETERS)
TEXTS = ["杰尼龟", "一只黑色的cat"]
pytestmark = pytest.mark.usefixtures("much_memory")


def reference_model(name: str) -> Any:
    from cn_clip.clip.utils import create_model

    vision, text, _ = CN_CLIP_NAMES[name]
    with without_init():
        model = create_model(f"{vision}@{text}")
    model.float()
    fill(model)
    return model.eval()


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (AS_RELEASED.mean, AS_RELEASED.std))
    return (pixels / 255 - mean) / std


@torch.inference_mode()
def features_of_the_reference(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    from cn_clip.clip import tokenize

    images = model.encode_image(normalised(pixels))
    return normalize(images, dim=-1), normalize(model.encode_text(tokenize(TEXTS)), dim=-1)


@torch.inference_mode()
def assert_ours_are_the_same(folder: Path, pixels: Tensor, wanted: tuple[Tensor, Tensor]) -> None:
    from cn_clip.clip import tokenize

    model = load_weights(folder)
    torch.testing.assert_close(model.encode_images(pixels), wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_texts(tokenize(TEXTS)), wanted[1], atol=1e-5, rtol=0)


@torch.inference_mode()
def assert_transformers_are_the_same(folder: Path, pixels: Tensor, wanted: tuple[Tensor, Tensor]) -> None:
    from cn_clip.clip import tokenize
    from transformers import ChineseCLIPModel

    model, ids = ChineseCLIPModel.from_pretrained(folder).eval(), tokenize(TEXTS)
    images = model.get_image_features(normalised(pixels)).pooler_output
    texts = model.get_text_features(ids, attention_mask=(ids != 0).long()).pooler_output
    torch.testing.assert_close(normalize(images, dim=-1), wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(texts, dim=-1), wanted[1], atol=1e-5, rtol=0)


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def architecture_of(image_tower: str, image_size: int) -> Architecture:
    shape = MODELS["vit-l-14"]
    return Architecture(
        image_tower=ImageTower(name=image_tower, options={}),
        text_tower=TextArchitecture(**shape.text_tower.model_dump(), vocab_size=VOCABULARY),
        embed_dim=shape.embed_dim,
        image_size=image_size,
        context_length=52,
        preprocessing=AS_RELEASED,
    )


@pytest.mark.parametrize("trained_at", [224, 336])
def test_the_reference_loads_l14_by_the_name_of_the_size_that_it_was_taken_to(trained_at: int) -> None:
    tower = f"vit_large_patch14_clip_quickgelu_{trained_at}"
    for image_size, name in ((224, "vit-l-14"), (336, "vit-l-14-336")):
        architecture = architecture_of(tower, image_size)
        assert name_of(architecture) == name
        vision = CN_CLIP_NAMES[name][0]
        said = " ".join(how_cn_clip_loads(architecture, Path("file.pt")))
        assert f"vision_model_name={vision!r}," in said and said.endswith(f"input_resolution={image_size})")
    (first, _) = how_cn_clip_loads(architecture_of(tower, 448), Path("file.pt"))
    assert first == "cn_clip has no model config of this shape (vit-l-14, 448 x 448);"


def pixels_for(name: str) -> Tensor:
    size = CN_CLIP_NAMES[name][2]
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8))


def tensors_in(path: Path) -> dict[str, Tensor]:
    return torch.load(path, mmap=True, weights_only=True, map_location="cpu")["state_dict"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep gigabytes


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NAMES])
def test_released_weights_go_in_and_out_to_the_bit_with_the_same_features(name: str, folder: Path) -> None:
    pixels = pixels_for(name)
    reference = reference_model(name)
    assert sum(parameter.numel() for parameter in reference.parameters()) == PARAMETERS[name]
    wanted = features_of_the_reference(reference, pixels)
    save_as_released(reference, folder / "released.pt")
    del reference
    gc.collect()

    import_checkpoint(folder / "released.pt", folder / "weights", None, None)
    assert name_of(read_contract(folder / "weights").architecture) == name
    assert_ours_are_the_same(folder / "weights", pixels, wanted)
    gc.collect()

    export_weights(folder / "weights", folder / "back.pt", "ofa")
    assert_same_tensors(tensors_in(folder / "released.pt"), tensors_in(folder / "back.pt"))
    (folder / "released.pt").unlink()
    (folder / "back.pt").unlink()
    gc.collect()

    if name == "rn50":
        with pytest.raises(ValueError, match="no class for a Chinese-CLIP with a ResNet"):
            export_weights(folder / "weights", folder / "transformers", "transformers")
        return
    export_weights(folder / "weights", folder / "transformers", "transformers")
    gc.collect()
    assert_transformers_are_the_same(folder / "transformers", pixels, wanted)


@pytest.mark.parametrize("name", ["rn50", "vit-b-16"])
def test_the_reference_loads_an_export_by_name_with_the_same_features(name: str, folder: Path) -> None:
    from cn_clip.clip import load_from_name

    reference, pixels = reference_model(name), pixels_for(name)
    wanted = features_of_the_reference(reference, pixels)
    save_as_released(reference, folder / "released.pt")
    import_checkpoint(folder / "released.pt", folder / "weights", None, None)
    export_weights(folder / "weights", folder / "back.pt", "ofa")
    vision, text, size = CN_CLIP_NAMES[name]
    with without_init():
        loaded, _ = load_from_name(str(folder / "back.pt"), "cpu", "", vision, text, size)
    for found, feature in zip(features_of_the_reference(loaded.eval(), pixels), wanted, strict=True):
        torch.testing.assert_close(found, feature, atol=1e-5, rtol=0)


RELEASED_DIR = os.environ.get("CLIP_RELEASED_DIR")


@pytest.mark.skipif(RELEASED_DIR is None, reason="CLIP_RELEASED_DIR names no folder of released Chinese-CLIP files")
def test_real_released_files_go_in_and_out_to_the_bit_with_the_references_features(folder: Path) -> None:
    files = sorted(Path(str(RELEASED_DIR)).glob("*.pt"))
    assert files, f"{RELEASED_DIR} holds no .pt file"
    for file in files:
        import_checkpoint(file, folder / "weights", None, None)
        name = name_of(read_contract(folder / "weights").architecture)
        assert name in PARAMETERS
        export_weights(folder / "weights", folder / "back.pt", "ofa")
        used = {n.removeprefix("module."): t for n, t in tensors_in(file).items() if "bert.pooler" not in n}
        back = tensors_in(folder / "back.pt")
        (folder / "back.pt").unlink()
        wanted = {n: t.float() if t.is_floating_point() else t for n, t in with_prefix(used).items()}
        assert_same_tensors(back, wanted)
        reference, pixels = reference_model(name), pixels_for(name)
        reference.load_state_dict(used)  # load_from_name would round them through fp16
        assert_ours_are_the_same(folder / "weights", pixels, features_of_the_reference(reference, pixels))
        shutil.rmtree(folder / "weights")
