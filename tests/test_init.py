"""The start from files: towers put together as in the paper, or a Chinese CLIP; what does not fit is named."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from clip_core.all_params import load_params
from clip_core.config.init import FromTowers, FromWeights
from clip_core.config.model import CustomModel, ImageTower, NamedModel, TextTower
from clip_core.data.store import StoreWriter
from clip_core.image import AS_RELEASED
from clip_core.model.clip import CLIP
from clip_core.model.contract import Architecture, TextArchitecture, read_contract, weights_id
from clip_core.model.pretrained.positions import resize_positions
from clip_core.model.registry import MODELS
from clip_core.model.start import differences, start_from_towers, start_from_weights
from clip_core.model.weights import load_weights, save_weights
from clip_core.params_file import read_yaml
from clip_core.recipe import apply_recipes, merged
from tests.conftest import ROOT
from tests.small_raw import drawing, pair_row
from tests.stage_calls import call
from tests.test_model import bert_folder
from tests.tiny import MADE, encoded, tiny_store

PARAMS = Path("params.yaml")  # in the working directory

IMAGE_TOWER = ImageTower(
    name="vit_base_patch16_clip_quickgelu_224",
    options={"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1},
)
TEXT_TOWER = TextTower(
    name="bert",
    options={"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24},
)
MODEL = CustomModel(
    name="custom",
    image_tower=IMAGE_TOWER,
    text_tower=TEXT_TOWER,
    embed_dim=10,
    image_size=32,
    context_length=16,
    matryoshka=(),
)
H14 = NamedModel(name="vit-h-14", image_size=224, context_length=52, matryoshka=())
CHARACTERS = "红绿蓝黄黑紫色圆形方块一张的图片"


def english_clip(folder: Path, image_size: int = 32, **changes: Any) -> Any:
    """An English CLIP as transformers saves one."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1,
              "image_size": image_size, "patch_size": 8}  # fmt: skip
    text = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = CLIPModel(CLIPConfig(vision_config=vision | changes, text_config=text, projection_dim=10)).eval()
    torch.nn.init.constant_(model.logit_scale, 3.5)
    model.save_pretrained(folder)
    return model


def chinese_clip(folder: Path) -> torch.nn.Module:
    """A small Chinese CLIP as transformers saves one, with its vocabulary."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    torch.manual_seed(4)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    text = {**TEXT_TOWER.options, "vocab_size": len(tokens), "max_position_embeddings": 20}
    config = ChineseCLIPConfig(vision_config=vision, text_config=text, projection_dim=10)
    model = ChineseCLIPModel(config).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return model


def from_towers(folder: Path) -> FromTowers:
    return FromTowers(**{"from": "towers"}, path=str(folder), image_tower="clip", bert_folder="bert")


def from_weights(folder: Path, weights: str = "chinese") -> FromWeights:
    return FromWeights(**{"from": "weights"}, path=str(folder), weights=weights, vocabulary=None)


def test_the_papers_start_has_the_english_image_side_the_chinese_bert_and_a_random_projection(tmp_path: Path) -> None:
    english, bert = english_clip(tmp_path / "clip"), bert_folder(tmp_path / "bert")
    start = start_from_towers(MODEL, from_towers(tmp_path), seed=1)
    model, pixels = start.model.eval(), torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        theirs = english.get_image_features(pixel_values=(pixels / 255 - model.mean) / model.std)
        theirs = getattr(theirs, "pooler_output", theirs)  # newer versions give more than the features
        assert torch.allclose(model.encode_images(pixels), theirs / theirs.norm(dim=1, keepdim=True), atol=1e-5)
        token_ids = torch.tensor([[2, 5, 6, 3]])
        assert torch.allclose(model.text_tower(token_ids), bert(token_ids).last_hidden_state[:, 0], atol=1e-5)
    assert math.isclose(model.logit_scale.item(), 3.5, rel_tol=1e-6)
    again, other = (start_from_towers(MODEL, from_towers(tmp_path), seed).model for seed in (1, 2))
    assert torch.equal(model.text_projection.weight, again.text_projection.weight)
    assert not torch.equal(model.text_projection.weight, other.text_projection.weight)
    wide = torch.cat(
        [start_from_towers(MODEL, from_towers(tmp_path), s).model.text_projection.weight for s in range(8)]
    )
    assert wide.std().item() == pytest.approx(12**-0.5, rel=0.1)
    assert start.origin.startswith("BERT ") and start.parent is None


def test_an_image_tower_without_projection_and_scale_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    english = english_clip(tmp_path / "clip")
    bert_folder(tmp_path / "bert")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save(
        {name: tensor for name, tensor in english.state_dict().items() if name.startswith("vision_model.")},
        tmp_path / "clip" / "pytorch_model.bin",
    )
    start = start_from_towers(MODEL, from_towers(tmp_path), seed=1)
    told = capsys.readouterr().out
    assert "has no projection to 10 dimensions: a random one" in told
    assert "has no logit_scale: CLIP's own start, ln(1/0.07) = 2.6593" in told
    assert math.isclose(start.model.logit_scale.item(), math.log(1 / 0.07), rel_tol=1e-6)


def test_positions_are_resized_where_pictures_have_another_size(tmp_path: Path) -> None:
    english_clip(tmp_path / "clip")
    bert_folder(tmp_path / "bert")
    small, large = (
        start_from_towers(MODEL.model_copy(update={"image_size": size}), from_towers(tmp_path), seed=1).model
        for size in (32, 48)
    )
    positions = "image_tower.pos_embed"
    assert torch.equal(large.state_dict()[positions], resize_positions(small.state_dict()[positions], 6))
    save_weights(small, start_from_towers(MODEL, from_towers(tmp_path), 1).tokenizer_json, tmp_path / "ours", MADE)
    ours = start_from_weights(MODEL.model_copy(update={"image_size": 48}), from_weights(tmp_path, "ours")).model
    assert same(ours, large)


def test_towers_that_are_not_the_models_are_refused_with_both_names(tmp_path: Path) -> None:
    english_clip(tmp_path / "clip", patch_size=16, num_hidden_layers=1)
    bert_folder(tmp_path / "bert")
    with pytest.raises(
        ValueError, match=r"model\.name is vit-h-14, .* vit_huge_patch14_\w+, but .*/clip has .*'depth': 1"
    ):
        start_from_towers(H14, from_towers(tmp_path), seed=1)
    english_clip(tmp_path / "clip")
    deeper = TEXT_TOWER.model_copy(update={"options": TEXT_TOWER.options | {"num_hidden_layers": 3}})
    with pytest.raises(ValueError, match=r"model\.name is custom, but .*/bert has num_hidden_layers 2 instead of 3\."):
        start_from_towers(MODEL.model_copy(update={"text_tower": deeper}), from_towers(tmp_path), seed=1)
    with pytest.raises(ValueError, match=r"embed_dim is 12, but the projection in .*/clip leads to 10 dimensions"):
        start_from_towers(MODEL.model_copy(update={"embed_dim": 12}), from_towers(tmp_path), seed=1)
    with pytest.raises(ValueError, match=r"init\.image_tower: .*/clip: no such file or folder"):
        start_from_towers(MODEL, from_towers(tmp_path / "elsewhere"), seed=1)


def test_weights_of_another_model_are_refused_with_all_that_differs(tmp_path: Path) -> None:
    chinese_clip(tmp_path / "chinese")
    with pytest.raises(
        ValueError, match=r"model\.name is vit-h-14, but .*/chinese has .*hidden_size 12 instead of 1024"
    ):
        start_from_weights(H14.model_copy(update={"context_length": 20}), from_weights(tmp_path))


def test_vit_l_14_may_become_vit_l_14_336_and_no_other() -> None:
    tower = TextArchitecture(**MODELS["vit-l-14"].text_tower.model_dump(), vocab_size=21128)
    found = Architecture(
        image_tower=MODELS["vit-l-14"].image_tower,
        text_tower=tower,
        embed_dim=768,
        image_size=224,
        context_length=52,
        preprocessing=AS_RELEASED,
        matryoshka=(),
    )
    assert {name for name, shape in MODELS.items() if not list(differences(shape, found))} == {
        "vit-l-14",
        "vit-l-14-336",
    }
    assert [*differences(MODELS["vit-b-16"], found)] == [
        "the image tower vit_large_patch14_clip_quickgelu_224 instead of vit_base_patch16_clip_quickgelu_224",
        "embed_dim 768 instead of 512",
    ]


def test_released_weights_keep_their_numbers_and_preprocessing_and_ours_keep_all(tmp_path: Path) -> None:
    theirs = chinese_clip(tmp_path / "chinese")
    start = start_from_weights(MODEL, from_weights(tmp_path))
    assert torch.equal(start.model.text_projection.weight, theirs.state_dict()["text_projection.weight"])
    assert start.model.architecture.preprocessing.convert == "after"  # as they were trained
    assert start.origin.startswith("Chinese CLIP ") and start.parent is None
    save_weights(start.model, start.tokenizer_json, tmp_path / "ours", MADE)
    shorter = MODEL.model_copy(update={"context_length": 8})
    again = start_from_weights(shorter, from_weights(tmp_path, "ours"))
    assert same(again.model, start.model)
    assert again.model.architecture.context_length == 8
    assert again.model.architecture.preprocessing == start.model.architecture.preprocessing
    assert again.parent == weights_id(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"context_length.* 21.* 20 positions"):
        start_from_weights(MODEL.model_copy(update={"context_length": 21}), from_weights(tmp_path, "ours"))


def same(one: CLIP, other: CLIP) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict], Path]:
    """Writes params.yaml with recipes and overlays, on tiny packed data, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed").mkdir()
    for split in ("train", "valid"):
        tiny_store(tmp_path / "packed" / split)

    def write(recipes: str, overlay: dict) -> Path:
        params_file = Path("params.yaml")
        params_file.write_bytes((ROOT / "params.yaml").read_bytes())
        apply_recipes([ROOT / "recipes" / f"{recipe}.yaml" for recipe in recipes.split()], params_file)
        params_file.write_text(json.dumps(merged(read_yaml(params_file), overlay)), encoding="utf-8")
        return params_file

    return write


SMALL = {"model": json.loads(MODEL.model_dump_json()), "seed": 3}
ONE_STEP = {"schedule": {"num_steps": 1, "num_epochs": None, "warmup_steps": 0}, "global_batch": 8, "micro_batch": 4}


def test_a_released_checkpoint_is_finetuned_by_the_recipe(
    tmp_path: Path, pipeline: Callable[[str, dict], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chinese_clip(tmp_path / "pretrained" / "chinese")
    pipeline("finetune-vit-b-16", SMALL | {"init": {"weights": "chinese"}, "stage2": ONE_STEP})
    packed = tmp_path / "packed"

    call("init", PARAMS, packed, tmp_path / "init", tmp_path / "curves" / "init")
    call("stage1", PARAMS, packed, tmp_path / "init", tmp_path / "stage1", tmp_path / "curves" / "stage1")
    call("stage2", PARAMS, packed, tmp_path / "stage1", tmp_path / "stage2", tmp_path / "curves" / "stage2")

    start, passed, tuned = (load_weights(tmp_path / name) for name in ("init", "stage1", "stage2"))
    assert same(start, passed)  # the recipe trains nothing in stage 1: it measures the checkpoint as it is
    moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, start.state_dict()[name])}
    assert {"image_projection.weight", "text_projection.weight", "logit_scale"} <= moved
    assert read_contract(tmp_path / "stage2").preprocessing == read_contract(tmp_path / "init").preprocessing
    rows = {name: (tmp_path / "curves" / name).read_text().split() for name in
            ("init/train.csv", "stage1/train.csv", "stage1/validation.csv", "stage2/train.csv")}  # fmt: skip
    assert [len(lines) for lines in rows.values()] == [1, 1, 2, 2]  # with the header
    assert rows["stage1/validation.csv"][1].startswith("0,")


def captioned(folder: Path, num_pictures: int) -> None:
    """A packed split as the source `table` makes one: a picture, a caption."""
    writer, rows = StoreWriter(folder, 2**24), []
    for i in range(num_pictures):
        image_id, image = f"picture-{i:03d}", encoded(drawing(i))
        writer.add(image_id, image)
        rows.append(pair_row(image_id, image, f"{CHARACTERS[i % 16]}的图片{i}", "train", seen=True))
    writer.finish(pd.DataFrame(rows))


def test_a_few_hundred_pairs_are_enough_for_the_recipe_as_it_is(
    tmp_path: Path, pipeline: Callable[[str, dict], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chinese_clip(tmp_path / "pretrained" / "chinese")
    params = load_params(pipeline("table finetune-vit-b-16", SMALL | {"init": {"weights": "chinese"}}))
    assert (params.stage2.global_batch, params.stage2.schedule.warmup_steps) == (48, 100)
    packed = tmp_path / "own"
    for split, num_pictures in (("train", 300), ("valid", 30)):
        (packed / split).parent.mkdir(exist_ok=True)
        captioned(packed / split, num_pictures)

    call("init", PARAMS, packed, tmp_path / "init", tmp_path / "curves" / "init")
    call("stage1", PARAMS, packed, tmp_path / "init", tmp_path / "stage1", tmp_path / "curves" / "stage1")
    call("stage2", PARAMS, packed, tmp_path / "stage1", tmp_path / "stage2", tmp_path / "curves" / "stage2")

    assert "7 steps are few for a warm-up of 100: it takes 1" in capsys.readouterr().out
    assert (tmp_path / "curves" / "stage2" / "train.csv").read_text().split()[1].startswith("7,")


def test_a_batch_larger_than_the_data_is_named_before_anything_is_read(
    tmp_path: Path, pipeline: Callable[[str, dict], Path]
) -> None:
    pipeline("table finetune-vit-b-16", SMALL)
    with pytest.raises(ValueError, match=r"stage2\.global_batch is 48, but only 36 training .*recipe `small-batch`"):
        call("init", PARAMS, tmp_path / "packed", tmp_path / "init", tmp_path / "curves" / "init")


def test_a_released_checkpoint_is_measured_by_a_recipe_and_stays_as_it_is(
    tmp_path: Path, pipeline: Callable[[str, dict], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chinese_clip(tmp_path / "pretrained" / "chinese")
    pipeline("table finetune-vit-b-16 evaluate", SMALL | {"init": {"weights": "chinese"}})
    packed = tmp_path / "packed"

    call("init", PARAMS, packed, tmp_path / "init", tmp_path / "curves" / "init")
    call("stage1", PARAMS, packed, tmp_path / "init", tmp_path / "stage1", tmp_path / "curves" / "stage1")
    call("stage2", PARAMS, packed, tmp_path / "stage1", tmp_path / "stage2", tmp_path / "curves" / "stage2")

    assert same(load_weights(tmp_path / "init"), load_weights(tmp_path / "stage2"))
    assert "decoded" not in capsys.readouterr().out  # the training pictures are not wanted
    rows = (tmp_path / "curves" / "stage2" / "validation.csv").read_text().split()
    assert len(rows) == 2 and rows[1].startswith("0,")


def test_the_papers_two_stages_start_from_towers_and_stage_1_leaves_the_image_side(
    tmp_path: Path, pipeline: Callable[[str, dict], Path]
) -> None:
    english_clip(tmp_path / "pretrained" / "clip")
    bert_folder(tmp_path / "pretrained" / "bert")
    start = {"image_tower": "clip", "bert_folder": "bert"}
    params = pipeline("pretrain-vit-b-16", SMALL | {"init": start, "stage1": ONE_STEP, "stage2": ONE_STEP})
    assert load_params(params).stage1.augmentation.name == "auto_augment"
    packed = tmp_path / "packed"

    call("init", PARAMS, packed, tmp_path / "init", tmp_path / "curves" / "init")
    call("stage1", PARAMS, packed, tmp_path / "init", tmp_path / "stage1", tmp_path / "curves" / "stage1")
    call("stage2", PARAMS, packed, tmp_path / "stage1", tmp_path / "stage2", tmp_path / "curves" / "stage2")

    weights = [load_weights(tmp_path / name).state_dict() for name in ("init", "stage1", "stage2")]
    moved = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in pairwise(weights)]
    assert not any(name.startswith("image_") for name in moved[0]) and "text_projection.weight" in moved[0]
    assert any(name.startswith("image_tower.") for name in moved[1])


def test_a_warm_start_in_params_keeps_bert_folders_inside_its_path() -> None:
    start = load_params(ROOT / "params.yaml").init
    assert start.from_ == "warm_start"
    assert (ROOT / start.path).is_dir()  # DVC asks for it
