"""SigLIP 2 comes from transformers' folders and goes back to the bit; tokens, pixels and features are transformers'."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

import clip_core
from clip_core.image import AS_SIGLIP2, pixels_of
from clip_core.inference.fast_vit import Patches
from clip_core.model.clip import CLIP
from clip_core.model.contract import read_contract
from clip_core.model.matryoshka import narrow
from clip_core.model.pretrained.exporting import export_weights
from clip_core.model.pretrained.importing import import_checkpoint
from clip_core.model.vocabulary import prune
from clip_core.model.weights import load_weights
from tests.siglip import SMALL, assert_same_tensors, save_as_released, siglip2, their_features, their_token_ids

VOCAB_SIZE = 600
TEXTS = ["杰尼龟的猫", "Hello WORLD cat", "", "两\n\n行  空格", "😀 Ǆ ΣΑΣ", "一只黑色的" * 80, "“沙发”上的cat"]
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Any:
    return siglip2(VOCAB_SIZE, **SMALL)


@pytest.fixture(scope="module")
def released(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_as_released(model, tmp_path_factory.mktemp("siglip") / "released", **SMALL)


@pytest.fixture(scope="module")
def imported(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip") / "weights"
    import_checkpoint(released, folder, None, None)
    return folder


@torch.inference_mode()
def assert_features(ours: CLIP, token_ids: Tensor, pixels: Tensor, wanted: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(ours.encode_images(pixels), wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_texts(token_ids), wanted[1], atol=1e-5, rtol=0)


def test_texts_get_the_tokens_of_transformers_and_padding_after_them(released: Path, imported: Path) -> None:
    ours, theirs = clip_core.load(imported).tokenize(TEXTS), their_token_ids(released, TEXTS)
    assert ours.shape == (len(TEXTS), 64)
    assert (ours == theirs.numpy()).all()
    assert clip_core.load(imported).tokenize([""]).tolist() == [[1, 0]]
    spelt = clip_core.load(imported).tokenize(["a <pad> <eos>"])[
        0
    ]  # theirs takes it for the end; in training it was not
    assert (spelt[:-1] > 1).all() and spelt[-1] == 1


@pytest.mark.parametrize("size", [(32, 32), (700, 300), (20, 11)])
def test_pictures_become_the_pixels_of_transformers_processor(size: tuple[int, int], released: Path) -> None:
    from transformers import AutoImageProcessor

    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    processor = AutoImageProcessor.from_pretrained(released, backend="pil")
    theirs = processor(picture, return_tensors="np", do_convert_rgb=True)["pixel_values"][0]
    np.testing.assert_allclose((pixels_of(picture, 32, AS_SIGLIP2) / 255 - 0.5) / 0.5, theirs, atol=1e-6)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_features_are_those_of_transformers_on_torch_and_pruned_to_fewer_tokens_on_onnx(
    runtime: Any, model: Any, released: Path, imported: Path, tmp_path: Path
) -> None:
    wanted, folder = their_features(model, their_token_ids(released, TEXTS), PIXELS), imported
    if runtime == "torch":
        assert_features(load_weights(imported), their_token_ids(released, TEXTS), PIXELS, wanted)
    else:  # one export for two promises
        prune(imported, folder := tmp_path / "pruned", TEXTS)
    predictor = clip_core.load(folder, runtime=runtime)
    pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in PIXELS]
    found = predictor.encode_images(pictures), predictor.encode_texts(TEXTS)
    differences = [float(np.abs(one - other.numpy()).max()) for one, other in zip(found, wanted, strict=True)]
    print(f"\n| {runtime} | pictures {differences[0]:.1e} | texts {differences[1]:.1e} |")
    assert max(differences) < 1e-5
    np.testing.assert_allclose(predictor.encode_texts([""]), wanted[1][2:3].numpy(), atol=1e-5)
    rows = predictor.tokenize(TEXTS[:1])
    for length in (rows.shape[1], 16, 63, 64):  # Triton pads to a few lengths
        padded = np.pad(rows, ((0, 0), (0, length - rows.shape[1])))
        np.testing.assert_allclose(predictor.towers.encode_texts(padded), wanted[1][:1].numpy(), atol=1e-5)
    assert predictor.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_an_import_and_an_export_give_the_folder_back_to_the_bit(
    model: Any, released: Path, imported: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoProcessor

    export_weights(imported, tmp_path / "back", "transformers")
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), load_file(released / "model.safetensors"))
    loaded, processor = (kind.from_pretrained(tmp_path / "back") for kind in (AutoModel, AutoProcessor))
    assert type(loaded) is type(model)
    token_ids = processor(text=TEXTS, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(token_ids, their_token_ids(released, TEXTS))
    wanted = their_features(model, token_ids, PIXELS)
    for found, feature in zip(their_features(loaded.eval(), token_ids, PIXELS), wanted, strict=True):
        torch.testing.assert_close(found, feature, atol=0, rtol=0)
    import_checkpoint(tmp_path / "back", tmp_path / "again", None, None)
    assert read_contract(tmp_path / "again").architecture == read_contract(imported).architecture
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (imported / "tokenizer.json").read_bytes()


def test_timm_loads_the_image_tower_and_it_comes_back(model: Any, imported: Path, tmp_path: Path) -> None:
    import timm

    export_weights(imported, tmp_path / "timm", "timm")
    tower = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.inference_mode():
        features = normalize(tower((PIXELS / 255 - 0.5) / 0.5), dim=-1)
    torch.testing.assert_close(features, load_weights(imported).encode_images(PIXELS), atol=1e-6, rtol=0)
    import_checkpoint(tmp_path / "timm", tmp_path / "tower", None, None)
    assert json.loads((tmp_path / "tower" / "config.json").read_text())["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]


def test_positions_for_larger_pictures_are_those_of_transformers(model: Any, released: Path, tmp_path: Path) -> None:
    import_checkpoint(released, tmp_path / "larger", None, 48, 16)
    pixels = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    token_ids = their_token_ids(released, ["hello"])
    wanted = their_features(model, token_ids, pixels, interpolate_pos_encoding=True)
    assert_features(load_weights(tmp_path / "larger"), token_ids[:, :5], pixels, wanted)
    assert clip_core.load(tmp_path / "larger").tokenize(["一只黑色的" * 80]).shape == (1, 16)


def test_pixels_beyond_the_last_patch_are_left_out_by_the_fast_tower_too() -> None:
    convolution = torch.nn.Conv2d(3, 5, 14, stride=14)
    pixels = torch.rand(2, 3, 30, 41)
    torch.testing.assert_close(Patches(convolution)(pixels), convolution(pixels), atol=1e-6, rtol=1e-6)


def test_narrower_features_are_the_first_numbers_of_the_wider(imported: Path) -> None:
    model, token_ids = load_weights(imported), torch.tensor([[9, 1]])
    with torch.inference_mode():
        wanted = [normalize(f[:, :16], dim=-1) for f in (model.encode_images(PIXELS), model.encode_texts(token_ids))]
        narrow(model, 16)
        fitting = CLIP(model.architecture)
        fitting.load_state_dict(model.state_dict())
        for found, feature in zip(
            (fitting.encode_images(PIXELS), fitting.encode_texts(token_ids)), wanted, strict=True
        ):
            torch.testing.assert_close(found, feature, atol=1e-6, rtol=0)
