"""Half a CLIP comes in from timm, open_clip, transformers or a BERT folder, for stage init to start from."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_core.config.model import ImageTower
from clip_core.model.image_tower import make_image_tower
from clip_core.model.pretrained.checkpoint import read_checkpoint
from clip_core.model.pretrained.image_side import ImageSide, read_image_side
from clip_core.model.pretrained.importing import import_checkpoint
from clip_core.model.pretrained.names import OPENAI, to_theirs
from clip_core.model.pretrained.positions import resize_positions
from clip_core.model.pretrained.recognise import recognise_vit
from clip_core.model.registry import MODELS
from clip_core.model.text_start import architecture_of_bert, load_bert
from clip_core.model.text_tower import TextTower
from tests.released import fill

PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL_VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
TOWER = ImageTower(name="vit_base_patch16_clip_quickgelu_224", options=SMALL_VIT)


def small_open_clip() -> Any:
    vision = {"image_size": 32, "layers": 2, "width": 128, "head_width": 64, "patch_size": 8}
    text = {"context_length": 7, "vocab_size": 50, "width": 32, "heads": 1, "layers": 1}
    configs: Any = {"vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(embed_dim=16, quick_gelu=True, **configs)
    fill(model)
    return model.eval()


def small_transformers() -> Any:
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 16,
    }
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    fill(model)
    return model.eval()


def small_timm() -> Any:
    model: Any = timm.create_model(TOWER.name, img_size=32, num_classes=16, **SMALL_VIT)
    fill(model)
    nn.init.zeros_(model.head.bias)  # as in timm's CLIP weights, whose classifier is the projection
    return model.eval()


@torch.inference_mode()
def projected(side: ImageSide) -> Tensor:
    module = make_image_tower(side.recognised, side.image_size).module
    module.load_state_dict(side.tower)
    assert side.projection is not None
    return module.eval()(PICTURES) @ side.projection.T


@torch.inference_mode()
def test_open_clip_gives_its_image_side_as_safetensors_and_as_a_state_dict(tmp_path: Path) -> None:
    model = small_open_clip()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, tmp_path / "a.pt")
    for source in (tmp_path, tmp_path / "a.pt"):
        side = read_image_side(source)
        assert (side.recognised, side.image_size) == (TOWER, 32)
        assert side.logit_scale == pytest.approx(4.60546875)
        torch.testing.assert_close(projected(side), model.encode_image(PICTURES), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_transformers_gives_its_image_side_with_and_without_the_rest(tmp_path: Path) -> None:
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    model = small_transformers()
    model.save_pretrained(tmp_path / "clip")
    wanted = model.get_image_features(PICTURES).pooler_output
    side = read_image_side(tmp_path / "clip")
    assert (side.recognised, side.image_size) == (TOWER, 32)
    torch.testing.assert_close(projected(side), wanted, atol=1e-5, rtol=1e-5)
    CLIPVisionModelWithProjection.from_pretrained(tmp_path / "clip").save_pretrained(tmp_path / "projected")
    side = read_image_side(tmp_path / "projected")
    assert side.logit_scale is None
    torch.testing.assert_close(projected(side), wanted, atol=1e-5, rtol=1e-5)
    CLIPVisionModel.from_pretrained(tmp_path / "clip").save_pretrained(tmp_path / "tower")
    bare = read_image_side(tmp_path / "tower")
    assert bare.projection is None
    assert all(torch.equal(tensor, side.tower[name]) for name, tensor in bare.tower.items())


@torch.inference_mode()
def test_timm_gives_its_clip_tower_with_the_classifier_as_projection(tmp_path: Path) -> None:
    model = small_timm()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    side = read_image_side(tmp_path / "model.safetensors")
    assert (side.recognised, side.image_size) == (TOWER, 32)
    torch.testing.assert_close(projected(side), model(PICTURES), atol=1e-5, rtol=1e-5)


def test_open_clip_says_which_activation_its_towers_have(tmp_path: Path) -> None:
    save_file(small_open_clip().state_dict(), tmp_path / "open_clip_model.safetensors")
    for quick, name in ((True, TOWER.name), (False, TOWER.name.replace("_quickgelu", ""))):
        config = {"model_cfg": {"embed_dim": 16, "quick_gelu": quick, "vision_cfg": {"width": 128}}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        assert read_image_side(tmp_path).recognised.name == name


def test_a_classifier_of_other_things_is_no_projection(tmp_path: Path) -> None:
    model = small_timm()
    nn.init.ones_(model.head.bias)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert read_image_side(tmp_path / "model.safetensors").projection is None


def test_any_tower_of_timm_comes_in_when_it_is_named(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto", num_classes=5)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    tower = ImageTower(name="convnext_atto", options={})
    with pytest.raises(ValueError, match=r"no image tower that is known by its tensors; name it in model\.image_tower"):
        read_image_side(tmp_path / "model.safetensors")
    named = read_image_side(tmp_path / "model.safetensors", tower)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "convnext_atto"}))
    recognised = read_image_side(tmp_path)
    assert recognised.recognised == tower
    for side in (named, recognised):
        assert side.projection is None
        make_image_tower(tower, 224).module.load_state_dict(side.tower)


def test_a_tower_of_another_shape_than_wanted_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    save_file(small_timm().state_dict(), tmp_path / "model.safetensors")
    deeper = ImageTower(name=TOWER.name, options={**SMALL_VIT, "depth": 3, "patch_size": 16})
    with pytest.raises(ValueError) as error:
        read_image_side(tmp_path / "model.safetensors", deeper)
    assert "missing: blocks.2.norm1.weight (128)" in str(error.value)
    assert "other shape: patch_embed.proj.weight is (128, 3, 8, 8), wanted is (128, 3, 16, 16)" in str(error.value)


def test_the_positions_of_an_image_side_are_resized(tmp_path: Path) -> None:
    model = small_timm()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    side = read_image_side(tmp_path / "model.safetensors", TOWER, image_size=64)
    assert side.image_size == 64
    assert torch.equal(side.tower["pos_embed"], resize_positions(model.pos_embed.detach(), 8))


def test_an_l14_taken_to_336_pixels_has_the_name_of_that_size(tmp_path: Path) -> None:
    name = "vit_large_patch14_clip_quickgelu_"
    small: dict[str, Any] = {**SMALL_VIT, "patch_size": 14}
    save_file(timm.create_model(f"{name}224", num_classes=16, **small).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": f"{name}224", "model_args": small}))
    import_checkpoint(tmp_path, tmp_path / "tower", None, image_size=336)
    config = json.loads((tmp_path / "tower" / "config.json").read_text())
    assert (config["architecture"], config["model_args"]["img_size"]) == (f"{name}336", 336)


@torch.inference_mode()
def test_an_imported_image_tower_is_a_folder_that_timm_and_init_read(tmp_path: Path) -> None:
    model = small_open_clip()
    torch.save(model.state_dict(), tmp_path / "file.pt")
    import_checkpoint(tmp_path / "file.pt", tmp_path / "half", None, None)
    assert sorted(path.name for path in (tmp_path / "half").iterdir()) == ["config.json", "model.safetensors"]
    before, after = read_image_side(tmp_path / "file.pt"), read_image_side(tmp_path / "half")
    assert (before.recognised, before.image_size, before.logit_scale) == (
        after.recognised,
        after.image_size,
        after.logit_scale,
    )
    assert before.projection is not None
    assert after.projection is not None
    assert torch.equal(before.projection, after.projection)
    assert all(torch.equal(tensor, after.tower[name]) for name, tensor in before.tower.items())
    theirs = timm.create_model(f"local-dir:{tmp_path / 'half'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(PICTURES), model.encode_image(PICTURES), atol=1e-5, rtol=1e-5)


def test_an_imported_bert_is_a_folder_that_init_reads(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    source = tmp_path / "bert"
    model: Any = BertForMaskedLM(
        BertConfig(vocab_size=5, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
    )
    model.save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    import_checkpoint(source, tmp_path / "half", None, None)
    assert not list((tmp_path / "half").glob("*.bin"))
    tower = TextTower(architecture_of_bert(tmp_path / "half", 5))
    load_bert(tower, read_checkpoint(tmp_path / "half"))
    wanted = model.bert.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tower.encoder.state_dict().items())


def test_h14_has_heads_of_80_and_all_other_towers_of_64() -> None:
    for name in ("vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336", "vit-h-14"):
        tower, image_size = MODELS[name].image_tower, 336 if name == "vit-l-14-336" else 224
        with torch.device("meta"):
            module = make_image_tower(tower, image_size).module
        theirs = to_theirs({f"image_tower.{n}": t for n, t in module.state_dict().items()}, OPENAI)
        recognised = recognise_vit(theirs, OPENAI, {})
        assert (recognised.tower, recognised.image_size) == (tower, image_size)
