"""SigLIP 2 trains as what it is, and what is none, or none any more, is refused by name."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import clip_core
from clip_core.image import AS_SIGLIP2, pixels_of
from clip_core.model.contract import read_contract
from clip_core.model.matryoshka import narrow
from clip_core.model.pretrained.exporting import export_weights
from clip_core.model.pretrained.importing import import_checkpoint
from clip_core.model.vocabulary import prune
from clip_core.model.vocabulary_effect import Effect
from clip_core.model.vocabulary_kinds import CHINESE_AND_ENGLISH
from clip_core.model.weights import load_weights
from clip_core.params_file import read_yaml
from clip_core.recipe import merged
from clip_core.serve.install import triton_home
from clip_core.text import build_tokenizer
from tests.conftest import ENVIRONMENT, ROOT
from tests.siglip import SMALL, assert_same_tensors, gemma_tokenizer, save_as_released, siglip2
from tests.stage_calls import call
from tests.test_parity_serving import STUB
from tests.tiny import tiny_store
from tests.tiny_split import plain_picture

TEXTS = ["杰尼龟的猫", "Hello world", "一只 cat\n\n", "bytes 😀"]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_as_released(siglip2(600, **SMALL), tmp_path_factory.mktemp("siglip") / "released", **SMALL)


@pytest.fixture(scope="module")
def imported(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip") / "weights"
    import_checkpoint(released, folder, None, None)
    return folder


Change = Callable[[Path], object]


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        (folder / "config.json").write_text(json.dumps(content))

    return change


def tensors(make: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    return lambda folder: save_file(make(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def tokenizer_of_another_kind(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(build_tokenizer(["一只猫"]))


BAD: dict[str, tuple[Change, str]] = {
    "naflex": (config(model_type="siglip2"), "a SigLIP 2 of the kind NaFlex"),
    "siglip 1": (
        tensors(lambda t: {**t, "text_model.embeddings.token_embedding.weight": torch.zeros(32_000, 64)}),
        r"a SigLIP \(1\): its 32,000 tokens",
    ),
    "no bias": (tensors(lambda t: {k: v for k, v in t.items() if k != "logit_bias"}), r"missing: logit_bias \(\)"),
    "a resolution that the positions do not have": (
        config(vision_config={"image_size": 48}),
        "config.json is 48, but there are 16 positions for patches of 8 pixels: 32 x 32 pixels",
    ),
    "pictures of another size": (
        lambda folder: (folder / "preprocessor_config.json").write_text('{"size": {"height": 48, "width": 48}}'),
        r"so here: size \{'height': 48",
    ),
    "another activation": (config(text_config={"hidden_act": "gelu"}), "hidden_act 'gelu' of its text tower"),
    "heads that do not fit": (config(vision_config={"num_attention_heads": 7}), "is 7, which do not share 96"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "tensors without a config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "a tokenizer of BERT's kind": (tokenizer_of_another_kind, "not Gemma's tokenizer .BPE, .*but WordPiece with 7 tok"),
    "a tokenizer of another size": (
        lambda folder: gemma_tokenizer(700).save(str(folder / "tokenizer.json")),
        "has 700 tokens, but the weights have embeddings for 600",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_whole_siglip_2_is_refused_by_name_with_what_is_accepted(
    kind: str, released: Path, tmp_path: Path
) -> None:
    change, message = BAD[kind]
    shutil.copytree(released, tmp_path / "bad")
    change(tmp_path / "bad")
    with pytest.raises(ValueError, match=rf"(?s)bad: .*{message}.*accepted are SigLIP 2 for fixed resolutions"):
        import_checkpoint(tmp_path / "bad", tmp_path / "weights", None, None)
    assert not (tmp_path / "weights").exists()


def test_weights_that_transformers_can_not_hold_are_not_exported(imported: Path, tmp_path: Path) -> None:
    model, folder = load_weights(imported), tmp_path / "narrow"
    shutil.copytree(imported, folder)
    narrow(model, 16)
    contract = read_contract(imported).model_copy(update={"architecture": model.architecture})
    (folder / "model.json").write_text(contract.model_dump_json())
    save_file(model.state_dict(), folder / "model.safetensors")
    for form, message in (
        ("transformers", "without SigLIP's attention pooling"),
        ("ofa", "is a BERT, not 'siglip_text_model'"),
    ):
        with pytest.raises(ValueError, match=message):
            export_weights(folder, tmp_path / "out", form)


@pytest.fixture(scope="module")
def pruned(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Effect]:
    folder = tmp_path_factory.mktemp("siglip") / "pruned"
    return folder, prune(imported, folder, TEXTS)


def test_fewer_tokens_leave_the_texts_of_the_kept_ones_as_they_are(
    imported: Path, pruned: tuple[Path, Effect], tmp_path: Path
) -> None:
    folder, effect = pruned
    assert (effect.num_texts, effect.num_changed, effect.num_equal) == (4, 0, (4, 4))
    assert 256 + 6 < effect.tokens[1] < effect.tokens[0] == 600
    assert effect.parameters[0] - effect.parameters[1] == 64 * (effect.tokens[0] - effect.tokens[1])
    before, after = (clip_core.load(place).encode_texts(["HELLO 猫", "黑 dog"]) for place in (imported, folder))
    assert (before[0] == after[0]).all() and (before[1] != after[1]).any()  # of 黑 only the bytes are left
    export_weights(folder, tmp_path / "out", "transformers")
    import_checkpoint(tmp_path / "out", tmp_path / "again", None, None)
    assert_same_tensors(*(load_file(place / "model.safetensors") for place in (folder, tmp_path / "again")))


def test_of_chinese_and_english_all_is_kept_whatever_the_captions_say(imported: Path, tmp_path: Path) -> None:
    effect = prune(imported, tmp_path / "small", ["杰尼龟", "一只黑色的cat", "σ"], CHINESE_AND_ENGLISH)
    assert (effect.num_changed, effect.num_equal, len(effect.cosines)) == (1, (2, 2), 1)
    full, small = (
        json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        for folder in (imported, tmp_path / "small")
    )
    assert {"σ", "ǆ", "H", "He", "Hel", "Hell", "Hello"} == full.keys() - small.keys()
    assert [*small][:2] == ["<pad>", "<eos>"] and [*small.values()] == [*range(len(small))]


def test_triton_reads_texts_and_pictures_for_it_as_the_predictor_does(
    pruned: tuple[Path, Effect], tmp_path: Path
) -> None:
    shutil.copytree(pruned[0], tmp_path / "repository" / "1")
    (tmp_path / "repository" / "1" / "release.txt").write_text("0\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0").write_bytes(plain_picture(5))
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    paths = (tmp_path / "repository", tmp_path / "pictures", tmp_path / "texts.json", tmp_path)
    python = triton_home() / "environment" / "bin" / "python"
    subprocess.run([python, "-c", STUB, *paths], cwd=ROOT, env=ENVIRONMENT, check=True)
    predictor = clip_core.load(pruned[0])
    token_ids = np.load(tmp_path / "token_ids.npy")
    assert np.array_equal(predictor.encode_texts(TEXTS), predictor.towers.encode_texts(token_ids))
    assert np.array_equal(np.load(tmp_path / "pixels.npy")[0], pixels_of(plain_picture(5), 32, AS_SIGLIP2))


def test_pruned_or_not_it_trains_by_the_sigmoid_loss_from_its_own_scale_and_bias(
    released: Path, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed").mkdir()
    for split in ("train", "valid"):
        tiny_store(tmp_path / "packed" / split)
    before = read_contract(imported).architecture
    at_256 = before.image_tower.model_copy(update={"name": "vit_base_patch16_siglip_256"})  # the same, but for its name
    step = {
        "schedule": {"num_steps": 1, "warmup_steps": 0},
        "global_batch": 8,
        "loss": {"name": "sigmoid", "positives": "pair"},
    }
    towers = {"image_tower": at_256, "text_tower": before.text_tower}
    towers = {name: {"name": tower.name, "options": tower.options} for name, tower in towers.items()}
    model = {"name": "custom", **towers, "embed_dim": 96, "image_size": 32, "context_length": 64, "matryoshka": [16]}
    init = {"from": "weights", "path": str(released.parent), "weights": released.name, "vocabulary": None}
    params_file, params = tmp_path / "params.yaml", read_yaml(ROOT / "params.yaml")
    params |= {"model": model, "init": init}
    params_file.write_text(json.dumps(merged(params, {"stage1": step, "stage2": {**step, "patch_dropout": 0.5}})))
    call("init", params_file, tmp_path / "packed", tmp_path / "init", tmp_path / "curves")
    prune(tmp_path / "init", tmp_path / "pruned", TEXTS)
    call("stage1", params_file, tmp_path / "packed", tmp_path / "pruned", tmp_path / "stage1", tmp_path / "curves1")
    call("stage2", params_file, tmp_path / "packed", tmp_path / "stage1", tmp_path / "stage2", tmp_path / "curves2")
    assert read_contract(tmp_path / "init").architecture == before.model_copy(
        update={"matryoshka": (16,), "image_tower": at_256}
    )
    assert_same_tensors(*(load_file(place / "model.safetensors") for place in (imported, tmp_path / "init")))
    assert read_contract(tmp_path / "stage2").architecture == read_contract(tmp_path / "pruned").architecture
    assert (tmp_path / "stage2" / "tokenizer.json").read_bytes() == (
        tmp_path / "pruned" / "tokenizer.json"
    ).read_bytes()
    first, *later = (load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "stage1", "stage2"))
    moved = [{name for name in first if not torch.equal(first[name], tensors[name])} for tensors in later]
    assert moved[0] and not any(name.startswith("image_") for name in moved[0])
    assert moved[1] == {*first}
    assert later[1]["logit_scale"].item() == pytest.approx(first["logit_scale"].item(), abs=0.05)  # it is above ln(100)
