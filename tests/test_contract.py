"""model.json is checked when weights are loaded: what it asks for must be known, and must fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clip_core
from clip_core.image import AS_RELEASED, Preprocessing
from clip_core.model.clip import make_clip
from clip_core.model.contract import read_contract
from clip_core.model.weights import save_weights
from clip_core.text import build_tokenizer
from tests.tiny import MADE, tiny_architecture

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer(["一只猫", "ok"])
    architecture = tiny_architecture(tokenizer).model_copy(update={"preprocessing": AS_RELEASED})
    save_weights(make_clip(architecture, seed=1), tokenizer, tmp_path / "weights", MADE)
    return tmp_path / "weights"


def changed(folder: Path, change: Change) -> Path:
    """The folder after a change of its model.json's architecture."""
    contract = json.loads((folder / "model.json").read_text())
    change(contract["architecture"])
    (folder / "model.json").write_text(json.dumps(contract))
    return folder


def preprocessing(**fields: object) -> Change:
    return lambda architecture: architecture["preprocessing"].update(fields)


def test_the_preprocessing_travels_with_the_weights(folder: Path) -> None:
    assert read_contract(folder).preprocessing == AS_RELEASED != Preprocessing()
    assert clip_core.load(folder).contract.preprocessing == AS_RELEASED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (preprocessing(convert="sideways"), r"preprocessing\.convert: .*'before' or 'after' \(found 'sideways'\)"),
        (preprocessing(resize="crop"), r"preprocessing\.resize: .*'squash-bilinear' \(found 'crop'\)"),
        (preprocessing(orientation=None), r"preprocessing\.orientation: .*'exif' or 'stored'"),
        (preprocessing(grey16="black"), r"preprocessing\.grey16: .*'scaled' or 'clipped'"),
        (preprocessing(background="grey"), r"preprocessing\.background: .*'white' or 'dropped'"),
        (preprocessing(interpolation="lanczos"), r"preprocessing\.interpolation: .*\(found 'lanczos'\)"),
        (preprocessing(mean=[0.5, 0.5]), r"preprocessing\.mean\.2: Field required"),
        (preprocessing(mean=[0.5, 0.5, "0.5"]), r"preprocessing\.mean\.2: .*valid number"),
        (preprocessing(mean=[0.5, 0.5, float("nan")]), r"preprocessing: .*nan.* must be finite"),
        (preprocessing(std=[0.5, 0.5, float("inf")]), r"preprocessing: .*inf.* must be finite"),
        (preprocessing(std=[0.5, 0.0, 0.5]), r"preprocessing: .*std above 0"),
        (lambda architecture: architecture.update(context_length=17), r"context_length is 17, but .* has 16 positions"),
    ],
)
def test_what_this_version_does_not_know_is_refused_with_file_field_and_what_is_allowed(
    folder: Path, change: Change, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"(?s)weights/model\.json: not a model this version can read:.*{message}"):
        clip_core.load(changed(folder, change))


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        (
            "vit_tiny_patch16_224",
            40,
            "image_size 40: vit_tiny_patch16_224 cuts pictures into squares of 16 pixels; 32 fits",
        ),
        ("resnet50_clip", 230, "image_size 230: resnet50_clip cuts pictures into squares of 32 pixels; 224 fits"),
    ],
)
def test_an_image_size_that_leaves_pixels_out_is_refused(
    folder: Path, name: str, image_size: int, message: str
) -> None:
    tower = {"name": name, "options": {}}
    changed(folder, lambda architecture: architecture.update(image_tower=tower, image_size=image_size))
    with pytest.raises(ValueError, match=rf"weights/model\.json: {message}"):
        clip_core.load(folder)
