"""`clip_core.load(folder, runtime="onnx")`: the exported graph behind the same Predictor."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clip_core
from clip_core.inference.onnx_predictor import exported
from clip_core.inference.predictor import Predictor
from clip_core.model.contract import WEIGHTS_SUM, weights_id
from clip_core.model.weights import save_weights
from clip_core.serve import export
from clip_core.text import build_tokenizer
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny import MADE, picture, tiny_clip

TEXTS = ["一只猫", "", "ok", "猫", "没见过"]
PICTURES = [picture("red", "circle", "a"), picture("blue", "square", "b"), picture("green", "circle", "c")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "weights"
    tokenizer = build_tokenizer(["一只猫", "ok"])
    save_weights(tiny_clip(tokenizer), tokenizer, folder, MADE)
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return clip_core.load(folder, runtime="onnx")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Exports run here, which takes less time; the list tells which there were."""
    made = []

    def run(command: list[str], check: bool, env: dict[str, str]) -> None:
        assert command[:3] == [sys.executable, "-m", "clip_core.serve.export"]
        assert check
        assert str(ROOT) in env["PYTHONPATH"].split(os.pathsep)
        export.export_alone(Path(command[3]), Path(command[4]))
        made.append(Path(command[4]))

    monkeypatch.setattr(subprocess, "run", run)
    return made


def copy_of(folder: Path, place: Path) -> Path:
    """The weights folder and its export, moved elsewhere."""
    for name in (folder.name, f".{folder.name}.onnx"):
        if (folder.parent / name).exists():
            shutil.copytree(folder.parent / name, place / name)
    return place / folder.name


def check_like_torch(predictor: Predictor, folder: Path) -> None:
    torch = clip_core.load(folder, device="cpu")
    assert np.abs(predictor.encode_texts(TEXTS) - torch.encode_texts(TEXTS)).max() < 1e-5
    assert np.abs(predictor.encode_images(PICTURES) - torch.encode_images(PICTURES)).max() < 1e-5


def test_it_computes_what_torch_computes_and_says_the_same_of_itself(folder: Path, predictor: Predictor) -> None:
    torch = clip_core.load(folder, device="cpu")
    check_like_torch(predictor, folder)
    assert predictor.encode_texts(TEXTS).dtype == np.float32
    assert predictor.encode_texts([]).shape == predictor.encode_images([]).shape == (0, 8)
    assert (predictor.logit_scale, predictor.weights_id) == (torch.logit_scale, torch.weights_id)
    assert (predictor.runtime, predictor.device, predictor.precision) == ("onnx", "cpu", "fp32")


def test_an_export_itself_can_be_loaded(folder: Path, predictor: Predictor) -> None:
    alone = clip_core.load(exported(folder), runtime="onnx")
    assert np.array_equal(alone.encode_texts(TEXTS), predictor.encode_texts(TEXTS))
    assert (alone.weights_id, alone.logit_scale) == (predictor.weights_id, predictor.logit_scale)


def test_a_width_is_cut_and_normalised_again(folder: Path, predictor: Predictor) -> None:
    with pytest.warns(UserWarning, match="width 4: this model was trained for 8"):
        narrow = clip_core.load(folder, runtime="onnx", width=4).encode_images(PICTURES)
    whole = predictor.encode_images(PICTURES)[:, :4]
    assert np.allclose(narrow, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)


def test_an_export_is_of_the_release_that_it_was_made_of_at_every_width(folder: Path, predictor: Predictor) -> None:
    with pytest.warns(UserWarning, match="width 4"):
        releases = [
            clip_core.load(place, runtime=runtime, width=4).weights_id
            for place, runtime in ((folder, "torch"), (folder, "onnx"), (exported(folder), "onnx"))
        ]
    assert len(set(releases)) == 1 and releases[0] != predictor.weights_id


def test_an_export_of_an_older_version_is_made_again_or_named(
    folder: Path, predictor: Predictor, tmp_path: Path, in_this_process: list[Path]
) -> None:
    moved, made = copy_of(folder, tmp_path), tmp_path / ".weights.onnx"
    (made / WEIGHTS_SUM).unlink()
    with pytest.raises(ValueError, match=rf"{made}: an export of an older version: export it again with"):
        clip_core.load(made, runtime="onnx")
    check_like_torch(clip_core.load(moved, runtime="onnx"), moved)
    assert in_this_process == [made]


def test_the_export_is_made_once_also_for_a_moved_folder(
    folder: Path, predictor: Predictor, tmp_path: Path, in_this_process: list[Path]
) -> None:
    assert predictor.weights_id == weights_id(folder.parent / ".weights.onnx")
    moved = copy_of(folder, tmp_path)
    clip_core.load(moved, runtime="onnx")
    assert in_this_process == []
    assert sorted(path.name for path in moved.iterdir()) == ["model.json", "model.safetensors", "tokenizer.json"]


def test_other_weights_in_the_folder_are_exported_again_in_two_files_when_they_are_large(
    folder: Path, predictor: Predictor, tmp_path: Path, in_this_process: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, made = copy_of(folder, tmp_path), tmp_path / ".weights.onnx"
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    save_weights(tiny_clip(tokenizer, seed=2), tokenizer, moved, MADE)
    monkeypatch.setattr(export, "MAX_BYTES", 0)
    other = clip_core.load(moved, runtime="onnx")
    assert other.weights_id == weights_id(moved) != predictor.weights_id
    assert in_this_process == [made]
    assert {"image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data"} < {path.name for path in made.iterdir()}
    check_like_torch(clip_core.load(made.rename(tmp_path / "elsewhere"), runtime="onnx"), moved)


def test_what_it_can_not_do_is_said_before_anything_is_exported(folder: Path, in_this_process: list[Path]) -> None:
    with pytest.raises(ValueError, match="device 'cuda': runtime 'onnx' runs on the CPU"):
        clip_core.load(folder, runtime="onnx", device="cuda")
    with pytest.raises(ValueError, match="precision 'bf16': runtime 'onnx' computes in fp32"):
        clip_core.load(folder, runtime="onnx", precision="bf16")
    with pytest.raises(ValueError, match="runtime 'tensorrt' is neither 'torch' nor 'onnx'"):
        clip_core.load(folder, runtime="tensorrt")
    assert in_this_process == []


def test_it_runs_without_torch(folder: Path, predictor: Predictor) -> None:
    code = f"import clip_core, sys; clip_core.load({str(folder)!r}, runtime='onnx').encode_texts(['ok'])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_first_export_is_made_from_any_folder_by_whoever_can_import_the_project(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "weights")
    code = f"import sys; sys.path.append({str(ROOT)!r})\n"
    code += "import clip_core; print(clip_core.load('weights', runtime='onnx').encode_texts(['ok']).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "(1, 8)\n", done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".weights.onnx", "weights"]
