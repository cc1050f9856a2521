"""Weights folders: whole, self-describing, the same bytes for the same model."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import clip_core
from clip_core.config.model import ImageTower
from clip_core.model.clip import make_clip
from clip_core.model.contract import read_contract, weights_id
from clip_core.model.weights import load_weights, save_weights, without_weights
from clip_core.text import build_tokenizer
from tests.conftest import ROOT
from tests.tiny import MADE, tiny_clip

TOKENIZER = build_tokenizer(["一只猫"])
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation
# Prints the memory at the height of what is done with the weights folder.
MEMORY = """
import re, sys
from pathlib import Path
import clip_core
from clip_core.model.contract import read_contract
from clip_core.model.weights import load_weights, save_weights
from clip_core.serve.export import write_onnx
from clip_core.text import build_tokenizer
from tests.tiny import MADE, tiny_clip

def memory(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def height(work):
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = memory("VmRSS")
    result = work()
    return memory("VmHWM") - before, result

def export(folder, out):
    out.mkdir()
    write_onnx(load_weights(folder), read_contract(folder), 20, out)

folder, tokenizer = Path(sys.argv[1]), build_tokenizer(["ok"])
small = folder.with_name("small")
save_weights(tiny_clip(tokenizer), tokenizer, small, MADE)
if sys.argv[2:]:  # in a process of its own: what was freed before would be taken again
    clip_core.load(small, device="cpu")
    print(height(lambda: clip_core.load(folder, device="cpu"))[0])
    sys.exit()
export(small, folder.with_name("small-onnx"))  # imports everything
exporting, _ = height(lambda: export(folder, folder.with_name("onnx")))
loading, model = height(lambda: load_weights(folder))
saving, _ = height(lambda: save_weights(model, tokenizer, folder.with_name("again"), MADE))
print(loading, saving, exporting)
"""


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


def test_the_file_holds_parameters_and_batch_norm_statistics_alone(folder: Path) -> None:
    model = tiny_clip(TOKENIZER)
    parameters = {name for name, _ in model.named_parameters()}
    statistics = {name for name, _ in model.named_buffers() if name.endswith(STATISTICS)}
    assert set(load_file(folder / "model.safetensors")) == parameters | statistics
    assert statistics


def test_training_what_was_loaded_never_touches_the_file(folder: Path) -> None:
    before, model = (folder / "model.safetensors").read_bytes(), load_weights(folder)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


def test_weights_can_be_loaded_as_bf16_and_their_counters_stay_whole_numbers(folder: Path) -> None:
    exact, rounded = load_weights(folder).state_dict(), load_weights(folder, torch.bfloat16).state_dict()
    for name, tensor in exact.items():
        wanted = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        assert rounded[name].dtype == wanted.dtype
        assert torch.equal(rounded[name], wanted)


@pytest.mark.parametrize(
    ("tower", "options"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4}),
        ("swinv2_cr_tiny_224", {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4}),
        ("vit_small_patch16_rope_224", {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}),
    ],
)
def test_constants_that_are_no_weights_are_right_in_any_tower(tower: str, options: dict, tmp_path: Path) -> None:
    architecture = tiny_clip(TOKENIZER).architecture
    image_tower = ImageTower(name=tower, options=options)
    model = make_clip(architecture.model_copy(update={"image_tower": image_tower}), seed=1)
    save_weights(model, TOKENIZER, tmp_path / "weights", MADE)

    loaded = load_weights(tmp_path / "weights")

    wanted, found = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert wanted.keys() == found.keys()
    assert len(wanted) > 2  # mean and std, and BERT's own
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.encode_images(pixels), model.eval().encode_images(pixels))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured as Linux counts it")
def test_loading_saving_and_exporting_take_the_memory_of_one_copy(tmp_path: Path) -> None:
    tiny = tiny_clip(TOKENIZER).architecture
    options = tiny.text_tower.options | {"hidden_size": 1024, "num_hidden_layers": 4, "intermediate_size": 4096}
    text_tower = tiny.text_tower.model_copy(update={"options": options})
    folder, model = tmp_path / "weights", without_weights(tiny.model_copy(update={"text_tower": text_tower}))
    zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(zeros, assign=True)
    save_weights(model, TOKENIZER, folder, MADE)
    size = (folder / "model.safetensors").stat().st_size

    loading, saving, exporting = heights(str(folder))[-3:]
    (predicting,) = heights(str(folder), "predicting")
    assert size > 150 * 2**20
    assert 0.9 * size < loading < 1.3 * size, f"loading {size >> 20} MiB took {loading >> 20} MiB"
    assert saving < 0.3 * size, f"saving {size >> 20} MiB took {saving >> 20} MiB more"
    assert predicting < 1.17 * size, f"a predictor of {size >> 20} MiB took {predicting >> 20} MiB"
    assert exporting < 1.3 * size, f"exporting {size >> 20} MiB took {exporting >> 20} MiB"


def heights(*arguments: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split() if word.isdecimal()]


def test_the_release_names_what_the_model_computes(folder: Path, tmp_path: Path) -> None:
    release = weights_id(folder)
    assert len(release) == 16

    other_history = MADE.model_copy(update={"params": "other"})
    save_weights(load_weights(folder), TOKENIZER, tmp_path / "history", other_history)
    assert weights_id(tmp_path / "history") == release

    model = load_weights(folder)
    model.logit_scale.data += 1e-6
    save_weights(model, TOKENIZER, tmp_path / "weights2", MADE)
    save_weights(load_weights(folder), TOKENIZER.replace("猫", "狗"), tmp_path / "tokenizer2", MADE)
    assert len({release, weights_id(tmp_path / "weights2"), weights_id(tmp_path / "tokenizer2")}) == 3


def test_the_contract_is_read_without_torch(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from clip_core.model.contract import *; "
        f"c = read_contract(Path({str(folder)!r})); r = weights_id(Path({str(folder)!r})); "
        "print(c.embed_dim, c.image_size, c.context_length, c.tokenizer, len(r), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["8", "32", "16", "tokenizer.json", "16", "False"]


def changed(folder: Path, **fields: object) -> None:
    """Changes model.json by hand."""
    contract = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(contract | fields))


def test_a_folder_that_is_incomplete_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"elsewhere: not a weights folder: it has no model\.json"):
        load_weights(folder.parent / "elsewhere")
    with pytest.raises(ValueError, match=re.escape(f"a file in a weights folder; name the folder, {folder}")):
        clip_core.load(folder / "model.safetensors")
    other = folder.with_name("released.pt")
    other.write_bytes(b"")
    with pytest.raises(ValueError, match=r"released.pt: not a weights folder, but a file; .*pretrained import"):
        clip_core.load(other)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file; it belongs to the weights beside it"):
        clip_core.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not a whole weights folder: it has no model\.safetensors; copy the folder"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("clip_core/2", r"its format is clip_core/2, newer than clip_core/1: update this project"),
        ("open_clip/1", r"its format is 'open_clip/1', and clip_core/1 is wanted: this folder is of another project"),
        (None, r"its format is None, and clip_core/1 is wanted"),
    ],
)
def test_a_newer_or_unknown_format_is_refused_with_what_to_do(folder: Path, form: object, message: str) -> None:
    changed(folder, format=form)
    with pytest.raises(ValueError, match=rf"model\.json: not a model this version can read: {message}"):
        read_contract(folder)


def test_a_model_json_that_says_too_much_or_nothing_is_refused(folder: Path) -> None:
    changed(folder, embed_dims=8)
    with pytest.raises(ValueError, match=r"(?s)embed_dims: Extra inputs.*did you mean embed_dim\?.*written by another"):
        read_contract(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"not a model this version can read: no JSON"):
        read_contract(folder)


def test_weights_that_do_not_fit_the_contract_are_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    contract = json.loads((folder / "model.json").read_text())
    contract["architecture"]["embed_dim"] = 9
    (folder / "model.json").write_text(json.dumps(contract))
    with pytest.raises(ValueError, match=r"(?s)model\.safetensors: not the weights.*image_projection"):
        load_weights(folder)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights.*copy the folder again"):
        load_weights(folder)


def test_every_tensor_that_does_not_fit_is_named_at_once(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["logit_scale"]
    tensors |= {"logit_scales": torch.zeros(()), "text_projection.weight": torch.zeros(8, 17)}
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"not the weights that model\.json describes") as error:
        load_weights(folder)
    for line in (
        "missing: logit_scale ()",
        "unexpected: logit_scales ()",
        "other shape: text_projection.weight is (8, 17), wanted is (8, 16)",
    ):
        assert line in str(error.value)


def test_a_failed_save_leaves_the_old_weights(folder: Path) -> None:
    before = weights_id(folder)
    model = tiny_clip(TOKENIZER, seed=2)
    with pytest.raises(TypeError):
        save_weights(model, None, folder, MADE)  # ty: ignore[invalid-argument-type]
    assert weights_id(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["weights"]
