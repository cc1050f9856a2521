"""Bringing weights in and out loses nothing that lies there, opens nothing that files name, and answers in words."""

import io
import json
import shutil
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_core.config.model import ImageTower
from clip_core.image import AS_RELEASED, Preprocessing
from clip_core.model import matryoshka
from clip_core.model.contract import read_contract
from clip_core.model.image_tower import make_image_tower
from clip_core.model.pretrained import __main__ as command
from clip_core.model.pretrained.checkpoint import read_checkpoint
from clip_core.model.pretrained.exporting import export_weights
from clip_core.model.pretrained.image_side import read_image_side
from clip_core.model.pretrained.importing import import_checkpoint
from clip_core.model.pretrained.saving import save_checkpoint, save_tensors
from clip_core.model.weights import load_weights, save_weights
from tests.released import reference, save_as_released
from tests.test_pretrained_halves import SMALL_VIT, small_open_clip, small_timm
from tests.tiny import MADE, tiny_clip


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_as_released(reference(), tmp_path_factory.mktemp("released") / "clip.pt")


@pytest.fixture(scope="module")
def imported(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "weights"
    import_checkpoint(released, folder, None, None)
    return folder


@pytest.fixture
def exported(imported: Path, tmp_path: Path) -> Path:
    export_weights(imported, tmp_path / "exported", "transformers")
    return tmp_path / "exported"


def change(path: Path, **changes: Any) -> None:
    """Other values in a JSON file; a part keeps what is not named."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(content.get(name), dict) else value
    path.write_text(json.dumps(content), encoding="utf-8")


def run(main: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """What the command says when it fails."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    with redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit):
        main()
    return said.getvalue()


def test_an_import_never_replaces_its_source_nor_what_lies_beside_it(released: Path, tmp_path: Path) -> None:
    source = tmp_path / "pretrained" / "clip.pt"
    source.parent.mkdir()
    shutil.copy2(released, source)
    for out in (source, source.parent, tmp_path):
        with pytest.raises(ValueError, match="which would be lost with it; name a new folder"):
            import_checkpoint(source, out, None, None)
    assert source.exists()


def test_an_import_replaces_an_earlier_import_alone(released: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights"
    import_checkpoint(released, out, None, None)
    import_checkpoint(released, out, None, None, context_length=20)
    assert read_contract(out).context_length == 20
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already and no earlier import"):
        import_checkpoint(released, out, None, None)
    assert (out / "notes.txt").exists()


def test_weights_that_were_trained_are_not_replaced_by_an_import(released: Path, tmp_path: Path) -> None:
    save_weights(tiny_clip(), "{}", tmp_path / "weights", MADE)
    with pytest.raises(ValueError, match="is there already and no earlier import"):
        import_checkpoint(released, tmp_path / "weights", None, None)


@pytest.mark.parametrize("form", ["ofa", "transformers"])
def test_an_export_replaces_nothing(form: Any, imported: Path, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_text("mine")
    for out in (tmp_path, tmp_path / "file.pt", imported):
        with pytest.raises(ValueError, match="is there already; name a new place, or remove it first"):
            export_weights(imported, out, form)
    assert (tmp_path / "file.pt").read_text() == "mine"
    assert (imported / "model.json").exists()


def test_a_narrower_model_replaces_nothing_and_the_command_says_so(
    imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is there already" in run(matryoshka.main, monkeypatch, imported, 32, imported.parent)
    assert (imported / "model.json").exists()


def test_the_export_to_onnx_replaces_an_earlier_one_alone_and_answers_in_words(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_core.serve import export

    assert "no export alone" in run(export.main, monkeypatch, imported, imported)
    assert "not a weights folder" in run(export.main, monkeypatch, tmp_path, tmp_path / "out")
    for name in ("text.onnx", "image.onnx"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="not a weights folder"):  # and not: is there already
        export.export_alone(tmp_path / "none", tmp_path)


@pytest.mark.parametrize("name", ["pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir", "num_classes"])
def test_options_of_a_tower_name_no_files_and_no_downloads(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"options: {name} can not be set"):
        make_image_tower(ImageTower(name="resnet10t", options={name: True}), 32)
    save_file(small_timm().state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_base_patch16_clip_quickgelu_224", "model_args": {**SMALL_VIT, name: True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{name} can not be set"):
        read_image_side(tmp_path)


def test_a_tensor_with_and_without_the_prefix_of_training_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1), "module.x": torch.ones(1)}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"with and without the prefix module\.: x"):
        read_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize("content", [b"", b"everything I know about cats\n", b"\x80\x02}q\x00", b"PK\x03\x04"])
def test_what_is_no_checkpoint_is_refused_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt: not a checkpoint of torch, or not a whole one; download or copy"):
        read_checkpoint(tmp_path / "file.pt")


def test_a_damaged_archive_is_refused_in_words(released: Path, tmp_path: Path) -> None:
    content = bytearray(released.read_bytes())
    for end in (1000, len(content) // 2, len(content) - 100):
        (tmp_path / "file.pt").write_bytes(content[:end])
        with pytest.raises(ValueError, match="not a whole one; download or copy it again"):
            read_checkpoint(tmp_path / "file.pt")
    at = content.rindex(b"PK\x01\x02")  # the last entry of the list at the archive's end
    content[at : at + 4] = b"damn"
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole one"):
        read_checkpoint(tmp_path / "file.pt")


def test_what_can_not_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:1] . unexpected pos\nframe 0")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match=r"could not be written: .*unexpected pos: .*file\.pt"):
        save_checkpoint({}, tmp_path / "file.pt")
    with pytest.raises(OSError, match=r"could not be written|No such file"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "none" / "file")


def test_texts_are_cut_where_the_command_says(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["command", "import", str(released), str(tmp_path / "weights"), "--context-length", "77"]
    )
    command.main()
    assert read_contract(tmp_path / "weights").context_length == 77
    said = run(command.main, monkeypatch, "import", released, tmp_path / "other", "--context-length", 513)
    assert "context_length 513 is more than the text tower's 512 positions" in said
    said = run(command.main, monkeypatch, "import", released, tmp_path / "other", "--context-length", 2)
    assert "context_length 2: [CLS], a token and [SEP] need 3" in said


def test_an_export_for_transformers_comes_back_with_its_own_preprocessing_and_length(
    imported: Path, tmp_path: Path
) -> None:
    own = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    model, contract = load_weights(imported), read_contract(imported)
    model.architecture = contract.architecture.model_copy(update={"preprocessing": own, "context_length": 20})
    save_weights(model, (imported / "tokenizer.json").read_text(), tmp_path / "own", contract.made)
    export_weights(tmp_path / "own", tmp_path / "out", "transformers")
    import_checkpoint(tmp_path / "out", tmp_path / "again", None, None)
    assert read_contract(tmp_path / "again").architecture == model.architecture


def test_a_foreign_folder_s_mean_and_std_are_taken_and_the_rest_is_as_released(exported: Path, tmp_path: Path) -> None:
    path = exported / "preprocessor_config.json"
    content = json.loads(path.read_text())
    del content["clip_core"]
    path.write_text(json.dumps(content | {"image_mean": [0.5, 0.5, 0.5]}))
    import_checkpoint(exported, tmp_path / "weights", None, None)
    contract = read_contract(tmp_path / "weights")
    assert contract.preprocessing == Preprocessing(
        "squash-bicubic", "after", "stored", "clipped", "dropped", (0.5, 0.5, 0.5), AS_RELEASED.std
    )
    assert contract.context_length == 52


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("preprocessor_config.json", {"size": {"shortest_edge": 32, "height": 9}}, r"so here: size \{'height': 9"),
        ("preprocessor_config.json", {"do_center_crop": True, "crop_size": 28}, "do_center_crop to 28"),
        ("preprocessor_config.json", {"do_normalize": False, "resample": 1}, "do_normalize False, resample 1"),
        ("preprocessor_config.json", {"image_std": [0.0, 0.5, 0.5]}, "std above 0|must be finite"),
        ("config.json", {"text_config": {"hidden_act": "relu"}}, "hidden_act of its text tower is 'relu'"),
        ("config.json", {"vision_config": {"hidden_act": "relu"}}, "hidden_act of its image tower is 'relu'"),
        ("config.json", {"vision_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps of its image tower is 1e-06"),
    ],
)
def test_what_a_folder_of_transformers_says_and_is_not_known_here_is_refused_by_name(
    file: str, changes: dict, message: str, exported: Path, tmp_path: Path
) -> None:
    change(exported / file, **changes)
    with pytest.raises(ValueError, match=message):
        import_checkpoint(exported, tmp_path / "weights", None, None)
    assert not (tmp_path / "weights").exists()


def test_the_eps_of_a_text_tower_is_taken_and_given_back(exported: Path, tmp_path: Path) -> None:
    change(exported / "config.json", text_config={"layer_norm_eps": 1e-5})
    import_checkpoint(exported, tmp_path / "weights", None, None)
    assert load_weights(tmp_path / "weights").text_tower.encoder.config.layer_norm_eps == 1e-5
    export_weights(tmp_path / "weights", tmp_path / "again", "transformers")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["text_config"]["layer_norm_eps"] == 1e-5


@pytest.mark.parametrize("head_width", [32, 64])
def test_open_clip_s_head_width_decides_how_many_heads_there_are(head_width: int, tmp_path: Path) -> None:
    save_file(small_open_clip().state_dict(), tmp_path / "open_clip_model.safetensors")
    vision = {"width": 128, "head_width": head_width}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": vision}}))
    assert read_image_side(tmp_path).recognised.options["num_heads"] == 128 // head_width
    change(tmp_path / "open_clip_config.json", model_cfg={"vision_cfg": vision | {"pool_type": "avg"}})
    with pytest.raises(ValueError, match="pool_type 'avg'"):
        read_image_side(tmp_path)


@pytest.mark.parametrize("width", [1408, 1664, 100])
def test_without_a_config_a_width_whose_heads_are_not_known_is_refused(width: int) -> None:
    from clip_core.model.pretrained.names import OPENAI
    from clip_core.model.pretrained.recognise import recognise_vit

    with torch.device("meta"):
        tensors = {
            "visual.conv1.weight": torch.empty(width, 3, 14, 14),
            "visual.positional_embedding": torch.empty(257, width),
            "visual.transformer.resblocks.0.mlp.c_fc.weight": torch.empty(4 * width, width),
            "visual.transformer.resblocks.0.ln_1.weight": torch.empty(width),
        }
    with pytest.raises(ValueError, match=f"{width} wide, and how many attention heads"):
        recognise_vit(tensors, OPENAI, {})
    assert recognise_vit(tensors, OPENAI, {"head_width": width // 4}).tower.options["num_heads"] == 4


def test_an_activation_that_nothing_tells_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(small_open_clip().state_dict(), tmp_path / "file.safetensors")
    read_image_side(tmp_path / "file.safetensors")
    assert "QuickGELU assumed" in capsys.readouterr().out


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    from transformers import BertConfig, BertForMaskedLM

    sizes: Any = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=5, **sizes)).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    return tmp_path / "bert"


def test_a_bert_with_more_than_its_config_says_is_refused_by_name(bert: Path, tmp_path: Path) -> None:
    change(bert / "config.json", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"unexpected: encoder\.layer\.1\.output\.dense\.weight \(64, 64\)"):
        import_checkpoint(bert, tmp_path / "half", None, None)
    change(bert / "config.json", num_hidden_layers=2)
    tensors = load_file(bert / "model.safetensors")
    extra = "bert.embeddings.task_type_embeddings.weight"
    save_file(tensors | {extra: torch.zeros(3, 64)}, bert / "model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected: embeddings\.task_type_embeddings\.weight"):
        import_checkpoint(bert, tmp_path / "half", None, None)
    change(bert / "config.json", model_type="ernie")
    with pytest.raises(ValueError, match="model_type is 'ernie'"):
        import_checkpoint(bert, tmp_path / "half", None, None)
    assert not (tmp_path / "half").exists()


def test_a_bert_in_shards_comes_in_unless_two_of_them_hold_the_same_tensor(bert: Path, tmp_path: Path) -> None:
    tensors = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    names = sorted(tensors)
    for part, held in (("1.safetensors", names[:9]), ("2.safetensors", names[9:])):
        save_file({name: tensors[name] for name in held}, bert / part)
    weight_map = {name: f"{1 + (name in names[9:])}.safetensors" for name in names}
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    import_checkpoint(bert, tmp_path / "half", None, None)
    import_checkpoint(bert, tmp_path / "half", None, None)  # replaces the earlier one
    save_file({name: tensors[name] for name in names[8:]}, bert / "2.safetensors")
    with pytest.raises(ValueError, match=rf"2\.safetensors: .*in another file: {names[8]} in 1\.safetensors; download"):
        import_checkpoint(bert, tmp_path / "other", None, None)


def test_an_option_that_means_nothing_for_half_a_clip_is_refused(bert: Path, tmp_path: Path) -> None:
    tower = tmp_path / "tower.safetensors"
    save_file(small_timm().state_dict(), tower)
    vocab = bert / "vocab.txt"
    for source, options, named in (
        (bert, (None, 224), "--image-size 224"),
        (bert, (vocab, None, 20), f"--vocab {vocab}, --context-length 20"),
        (tower, (vocab, None), f"--vocab {vocab}"),
    ):
        with pytest.raises(ValueError, match=rf"{named}: .* is half a CLIP, .* means nothing; leave it out"):
            import_checkpoint(source, tmp_path / "half", *options)
    assert not (tmp_path / "half").exists()


def test_a_bert_that_would_run_code_is_refused_with_the_reason(bert: Path) -> None:
    from argparse import Namespace

    from clip_core.model.registry import MODELS
    from clip_core.model.text_start import text_start

    (bert / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1), "args": Namespace()}, bert / "pytorch_model.bin")
    with pytest.raises(ValueError, match="would run code"):
        text_start(MODELS["tiny"], 16, str(bert), [])
