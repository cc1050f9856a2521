"""Weights folders: whole, self-describing, the same bytes for the same model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clip_core.model.contract import read_contract, release_of
from clip_core.model.weights import load_weights, save_weights
from clip_core.text import build_tokenizer
from tests.tiny import MADE, tiny_clip

TOKENIZER = build_tokenizer(["一只猫"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_weights(tiny_clip(TOKENIZER), TOKENIZER, tmp_path / "weights", MADE)
    return tmp_path / "weights"


def test_loading_what_was_saved_gives_every_bit_back(folder: Path, tmp_path: Path) -> None:
    model = tiny_clip(TOKENIZER)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.add_(1)  # statistics that training would have made
    save_weights(model, TOKENIZER, tmp_path / "trained", MADE)
    shutil.move(tmp_path / "trained", tmp_path / "moved")

    loaded = load_weights(tmp_path / "moved")

    assert not loaded.training
    assert loaded.architecture == model.architecture
    wanted, found = model.state_dict(), loaded.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_the_folder_holds_three_files_and_the_same_model_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_weights(load_weights(folder), TOKENIZER, tmp_path / "again", MADE)

    names = ["model.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_release_names_what_the_model_computes(folder: Path, tmp_path: Path) -> None:
    release = release_of(folder)
    assert len(release) == 16

    other_history = MADE.model_copy(update={"params": "other"})
    save_weights(load_weights(folder), TOKENIZER, tmp_path / "history", other_history)
    assert release_of(tmp_path / "history") == release

    model = load_weights(folder)
    model.logit_scale.data += 1e-6
    save_weights(model, TOKENIZER, tmp_path / "weights2", MADE)
    save_weights(load_weights(folder), TOKENIZER.replace("猫", "狗"), tmp_path / "tokenizer2", MADE)
    assert len({release, release_of(tmp_path / "weights2"), release_of(tmp_path / "tokenizer2")}) == 3


def test_the_contract_is_read_without_torch(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from clip_core.model.contract import *; "
        f"c = read_contract(Path({str(folder)!r})); r = release_of(Path({str(folder)!r})); "
        "print(c.embed_dim, c.image_size, c.context_length, c.tokenizer, len(r), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["8", "32", "16", "tokenizer.json", "16", "False"]


def test_a_folder_that_is_incomplete_or_foreign_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"elsewhere: not a weights folder: it has no model\.json"):
        load_weights(folder.parent / "elsewhere")

    contract = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(contract | {"format": "clip_core/9"}))
    with pytest.raises(ValueError, match=r"(?s)not a model this version can read.*format.*clip_core/9"):
        read_contract(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"not a model this version can read"):
        read_contract(folder)


def test_weights_that_do_not_fit_the_contract_are_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    contract = json.loads((folder / "model.json").read_text())
    contract["architecture"]["embed_dim"] = 9
    (folder / "model.json").write_text(json.dumps(contract))
    with pytest.raises(ValueError, match=r"(?s)model\.safetensors: not the weights.*image_projection"):
        load_weights(folder)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights"):
        load_weights(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"it has no model\.safetensors"):
        load_weights(folder)


def test_a_failed_save_leaves_the_old_weights(folder: Path) -> None:
    before = release_of(folder)
    model = tiny_clip(TOKENIZER, seed=2)
    with pytest.raises(TypeError):
        save_weights(model, None, folder, MADE)  # ty: ignore[invalid-argument-type]
    assert release_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["weights"]
