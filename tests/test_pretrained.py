"""Checkpoints of others come in whole or not at all, and go out so that the others read the same model in them."""

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

import clip_core
from clip_core.image import AS_RELEASED
from clip_core.model.clip import CLIP
from clip_core.model.contract import read_contract
from clip_core.model.pretrained.checkpoint import read_checkpoint
from clip_core.model.pretrained.exporting import export_weights
from clip_core.model.pretrained.importing import import_checkpoint
from clip_core.model.pretrained.positions import resize_positions
from clip_core.model.pretrained.whole import read_released
from clip_core.model.weights import load_weights
from tests.released import reference, save_as_released, with_prefix

TEXTS = ["杰尼龟", "一只黑色的 cat，在“沙发”上", "Hello World", ""]
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Any:
    return reference()


@pytest.fixture(scope="module")
def released(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_as_released(model, tmp_path_factory.mktemp("released") / "clip_cn_small.pt")


@pytest.fixture(scope="module")
def imported(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "weights"
    import_checkpoint(released, folder, None, None)
    return folder


@pytest.fixture(scope="module")
def for_transformers(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "transformers"
    export_weights(imported, folder, "transformers")
    return folder


def token_ids(texts: list[str]) -> Tensor:
    from cn_clip.clip import tokenize

    return tokenize([text.replace("“", '"').replace("”", '"') for text in texts])


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (AS_RELEASED.mean, AS_RELEASED.std))
    return (pixels / 255 - mean) / std


@torch.inference_mode()
def assert_same_features(ours: CLIP, reference: Any) -> None:
    texts, images = reference.encode_text(token_ids(TEXTS)), reference.encode_image(normalised(PIXELS))
    torch.testing.assert_close(ours.encode_texts(token_ids(TEXTS)), normalize(texts, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_images(PIXELS), normalize(images, dim=-1), atol=1e-5, rtol=0)


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def flash_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from cn_clip.clip.model import convert_state_dict

    return convert_state_dict(dict(tensors))


def pooled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "bert.pooler.dense.weight": torch.zeros(64, 64), "bert.pooler.dense.bias": torch.zeros(64)}


def trained(tensors: dict[str, Tensor]) -> dict:
    parameters = [nn.Parameter(tensor.clone()) for tensor in tensors.values()]
    optimizer = torch.optim.AdamW([{"params": parameters[:9], "weight_decay": 0.0}, {"params": parameters[9:]}])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    content = {"epoch": 3, "step": 99, "name": "muge", "state_dict": with_prefix(tensors)}
    return {**content, "optimizer": optimizer.state_dict()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict]] = {
    "without the prefix of distributed training": lambda t: {"epoch": 1, "state_dict": t},
    "with BERT's pooler": lambda t: {"state_dict": pooled(t)},
    "with BERT's pooler and the prefix": lambda t: {"state_dict": with_prefix(pooled(t))},
    "saved in training, with the optimizer": trained,
    "in fp16": lambda t: {"state_dict": with_prefix({name: tensor.half() for name, tensor in t.items()})},
    "with FlashAttention's names": lambda t: {"state_dict": flash_names(t)},
    "with FlashAttention's names and the prefix": lambda t: {"state_dict": with_prefix(flash_names(t))},
    "bare tensors": lambda t: t,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_reference_gives_the_same_model(
    layout: str, model: Any, imported: Path, tmp_path: Path
) -> None:
    torch.save(LAYOUTS[layout](dict(model.state_dict())), tmp_path / "file.pt")
    ours, _ = read_released(tmp_path / "file.pt")
    assert_same_tensors(ours.state_dict(), load_weights(imported).state_dict())


def test_a_file_of_torch_before_1_6_is_read_too(model: Any, imported: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": model.state_dict()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    ours, _ = read_released(tmp_path / "old.pt")
    assert_same_tensors(ours.state_dict(), load_weights(imported).state_dict())


def test_imported_weights_give_the_features_and_the_token_ids_of_the_reference(model: Any, imported: Path) -> None:
    assert_same_features(load_weights(imported), model)
    predictor = clip_core.load(imported)
    ids = token_ids(TEXTS)
    ours = predictor.tokenize(TEXTS)
    assert (ours == ids.numpy()[:, : ours.shape[1]]).all()
    assert not ids[:, ours.shape[1] :].any()
    assert predictor.logit_scale == pytest.approx(100, rel=1e-3)


def test_imported_weights_say_how_pictures_were_prepared_and_where_they_come_from(imported: Path) -> None:
    contract = read_contract(imported)
    assert contract.preprocessing == AS_RELEASED
    assert contract.context_length == 52
    assert contract.made.stage == "import"
    assert contract.made.data.startswith("clip_cn_small.pt sha256 ")
    assert str(imported.parent) not in (imported / "model.json").read_text()


def test_what_was_imported_is_said(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_checkpoint(released, tmp_path / "weights", None, None)
    said = capsys.readouterr().out
    assert "recognised as custom: 1,882,241 parameters" in said
    assert "the released one" in said
    assert "preprocessing as released" in said


def test_importing_twice_gives_the_same_release(released: Path, imported: Path, tmp_path: Path) -> None:
    import_checkpoint(released, tmp_path / "again", None, None)
    for path in imported.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_missing_unexpected_and_misshapen_tensors_are_named_all_at_once_and_nothing_is_left(
    model: Any, tmp_path: Path
) -> None:
    tensors = dict(model.state_dict())
    del tensors["visual.ln_pre.weight"], tensors["bert.encoder.layer.1.output.dense.bias"]
    tensors |= {"visual.extra": torch.zeros(3), "bert.embeddings.LayerNorm.weight": torch.zeros(63)}
    torch.save({"state_dict": with_prefix(tensors)}, tmp_path / "file.pt")
    with pytest.raises(ValueError) as error:
        import_checkpoint(tmp_path / "file.pt", tmp_path / "weights", None, None)
    for line in (
        "missing: visual.ln_pre.weight (128)",
        "missing: bert.encoder.layer.1.output.dense.bias (64)",
        "unexpected: visual.extra (3)",
        "other shape: bert.embeddings.LayerNorm.weight is (63), wanted is (64)",
    ):
        assert line in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_a_tensor_that_the_shape_is_read_from_is_missed_by_name(model: Any, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "visual.conv1.weight"}
    torch.save({"state_dict": tensors}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"missing: visual\.conv1\.weight"):
        read_released(tmp_path / "file.pt")


def test_a_file_that_would_run_code_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Namespace(lr=1)}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="would run code") as error:
        read_checkpoint(tmp_path / "file.pt")
    assert "argparse.Namespace" in str(error.value)


def test_a_torchscript_archive_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(ValueError, match=r"TorchScript.*is not run here.*torch\.save\(torch\.jit\.load"):
        read_checkpoint(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
def test_half_a_download_is_refused(name: str, released: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(released.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="whole"):
        read_checkpoint(tmp_path / name)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("hello")
    (tmp_path / "folder").mkdir()
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    for name, message in (("notes.pt", "not a checkpoint"), ("folder", "holds none of"), ("epoch.pt", "no tensors")):
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        read_checkpoint(tmp_path / "other")


def test_the_vocabulary_is_checked_against_the_released_one(released: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(ValueError, match=r"not the vocabulary.*45bbac6b341c319a"):
        read_released(released, wrong)


def test_without_any_vocabulary_the_import_says_what_to_give(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"without a vocabulary.*--vocab FILE"):
        read_released(released)


def test_the_vocabulary_beside_the_file_is_found_and_cn_clip_never_imported(
    released: Path, for_transformers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy2(for_transformers / "vocab.txt", tmp_path)
    shutil.copy2(released, tmp_path / "file.pt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, tokenizer_json = read_released(tmp_path / "file.pt")
    assert "杰" in json.loads(tokenizer_json)["model"]["vocab"]


def test_what_was_exported_for_the_reference_is_its_own_state_dict_to_the_bit(
    model: Any, imported: Path, tmp_path: Path
) -> None:
    export_weights(imported, tmp_path / "out.pt", "ofa")
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert {"epoch", "step", "name"} < content.keys()
    assert_same_tensors(content["state_dict"], with_prefix(model.state_dict()))


def test_numbers_that_fp16_can_not_hold_come_back_to_the_bit(model: Any, tmp_path: Path) -> None:
    tensors = {n: t + 1e-7 if t.is_floating_point() else t for n, t in model.state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "file.pt")
    import_checkpoint(tmp_path / "file.pt", tmp_path / "weights", None, None)
    for form, out in (("ofa", "out.pt"), ("transformers", "out")):
        export_weights(tmp_path / "weights", tmp_path / out, form)
        import_checkpoint(tmp_path / out, tmp_path / f"again-{form}", None, None)
        before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("weights", f"again-{form}"))
        assert_same_tensors(before, after)


@torch.inference_mode()
def test_transformers_loads_the_export_and_gives_the_same_features(imported: Path, for_transformers: Path) -> None:
    from transformers import ChineseCLIPModel

    from_pretrained: Any = ChineseCLIPModel.from_pretrained
    theirs, loading = from_pretrained(for_transformers, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, ids = load_weights(imported), token_ids(TEXTS)
    texts = theirs.eval().get_text_features(ids, attention_mask=(ids != 0).long()).pooler_output
    images = theirs.get_image_features(normalised(PIXELS)).pooler_output
    torch.testing.assert_close(normalize(texts, dim=-1), ours.encode_texts(ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(images, dim=-1), ours.encode_images(PIXELS), atol=1e-5, rtol=0)


def test_transformers_prepares_texts_and_pictures_with_the_export_as_the_reference_does(for_transformers: Path) -> None:
    import numpy as np
    from PIL import Image
    from transformers import ChineseCLIPProcessor

    processor = ChineseCLIPProcessor.from_pretrained(for_transformers)
    numbers = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(numbers)
    texts = [*TEXTS, "café １２３", "[MASK]", "长" * 99, "a" * 150]
    prepared = processor(text=texts, images=picture, padding=True, truncation=True, return_tensors="pt")
    assert prepared["input_ids"].equal(token_ids(texts)[:, : prepared["input_ids"].shape[1]])
    squashed = picture.resize((32, 32), Image.Resampling.BICUBIC)
    wanted = normalised(torch.from_numpy(np.asarray(squashed)).permute(2, 0, 1))
    assert prepared["pixel_values"].shape == (1, 3, 32, 32)
    assert (prepared["pixel_values"][0] - wanted).abs().max() < 0.02  # torchvision rounds otherwise by one of 256


def test_the_model_card_says_what_the_folder_is(imported: Path, for_transformers: Path) -> None:
    card = (for_transformers / "README.md").read_text()
    assert card.startswith("---\n")
    assert clip_core.load(imported).weights_id in card


@pytest.mark.parametrize("kind", ["bin", "shards", "fp16"])
def test_folders_of_transformers_come_in_in_every_form(
    kind: str, imported: Path, for_transformers: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(for_transformers, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if kind == "bin":
        ids = {"text_model.embeddings.position_ids": torch.arange(512)[None]}  # which older versions saved
        torch.save(tensors | ids, folder / "pytorch_model.bin")
    elif kind == "fp16":
        save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "model.safetensors")
    else:
        names = sorted(tensors)
        parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
        for part, held in parts.items():
            save_file({name: tensors[name] for name in held}, folder / part)
        weight_map = {name: part for part, held in parts.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    import_checkpoint(folder, tmp_path / "weights", None, None)
    assert_same_tensors(
        load_file(tmp_path / "weights" / "model.safetensors"), load_file(imported / "model.safetensors")
    )


def test_positions_are_resized_as_the_reference_does(released: Path, tmp_path: Path) -> None:
    from cn_clip.clip.model import resize_pos_embed

    larger = reference(image_resolution=48)
    tensors = dict(torch.load(released, weights_only=True)["state_dict"])
    positions = tensors["module.visual.positional_embedding"]
    resize_pos_embed(tensors, larger, prefix="module.")
    wanted = tensors["module.visual.positional_embedding"]
    torch.testing.assert_close(resize_positions(positions, 6), wanted, atol=0, rtol=0)
    import_checkpoint(released, tmp_path / "weights", None, 48)
    assert read_contract(tmp_path / "weights").image_size == 48
    ours = load_weights(tmp_path / "weights")
    torch.testing.assert_close(ours.state_dict()["image_tower.pos_embed"][0], wanted, atol=0, rtol=0)
    assert ours.encode_images(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).shape == (1, 32)


def test_a_size_that_patches_can_not_divide_is_refused(released: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size 50 is not a multiple of 8"):
        import_checkpoint(released, tmp_path / "weights", None, 50)


def test_weights_that_a_format_can_not_hold_are_refused(tmp_path: Path) -> None:
    from clip_core.model.weights import save_weights
    from clip_core.text import build_tokenizer
    from tests.tiny import MADE, tiny_clip

    save_weights(tiny_clip(), build_tokenizer(["红色"]), tmp_path / "weights", MADE)
    for form in ("ofa", "transformers"):
        with pytest.raises(ValueError, match=f"the format {form} can not hold"):
            export_weights(tmp_path / "weights", tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
