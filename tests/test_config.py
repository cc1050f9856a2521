"""A mistake in params.yaml is named before anything starts."""

import re
from pathlib import Path

import numpy as np
import pytest

from clip_core.all_params import check_files, check_params, load_params
from clip_core.config.gates import METRICS
from clip_core.config.training import Schedule
from clip_core.evaluate.benchmark import read_benchmark
from clip_core.evaluate.embed import Features
from clip_core.evaluate.measure import measure
from clip_core.params_file import read_yaml
from clip_core.recipe import apply_recipes, merged
from clip_core.train.schedule import num_steps_of, warmup_of
from tests.tiny_split import make_split

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    copy = tmp_path / "params.yaml"
    copy.write_bytes((ROOT / "params.yaml").read_bytes())
    return copy


def test_all_wrong_keys_are_named_at_once_with_what_is_allowed(params_file: Path) -> None:
    tree = merged(
        read_yaml(params_file),
        {
            "stage1": {"schedule": {"peak_lr": 7.0, "num_stepz": 3}},
            "pack": {"shard_mib": "256"},
            "evaluate": {"confidence": 1.5},
            "stagge3": 1,
        },
    )
    with pytest.raises(ValueError, match="5 wrong") as error:
        check_params(tree, params_file)
    message = str(error.value)
    assert "params.yaml" in message
    assert re.search(r"stage1\.schedule\.peak_lr: .*less than or equal to 1 \(found 7", message)
    assert re.search(r"stage1\.schedule\.num_stepz: .*did you mean num_steps", message)
    assert re.search(r"pack\.shard_mib: .*integer", message)
    assert re.search(r"evaluate\.confidence: .*less than 1 ", message)
    assert "stagge3" in message


def test_a_key_of_an_older_version_is_told_where_it_stands_now(params_file: Path, tmp_path: Path) -> None:
    old = {"stage1": {"log_every": 10, "evaluate_every": 100}, "init": {"warm_start": {"save_every": 5}}}
    with pytest.raises(ValueError, match="3 wrong") as error:
        check_params(merged(read_yaml(params_file), old), params_file)
    message = str(error.value)
    assert re.search(r"stage1\.log_every: .*it has moved: set it in intervals\.warm_start, intervals\.stage1", message)
    assert re.search(r"stage1\.evaluate_every: .*it has moved: set it in intervals\.stage1", message)
    assert re.search(r"init\.warm_start\.save_every: .*it has moved", message)
    recipe = tmp_path / "old.yaml"
    recipe.write_text("stage2: {save_every: 50}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"stage2\.save_every: .*it has moved"):
        apply_recipes([recipe], params_file)


def test_numbers_that_contradict_each_other_are_refused(params_file: Path) -> None:
    tree = merged(read_yaml(params_file), {"stage2": {"schedule": {"num_steps": 10, "warmup_steps": 10}}})
    with pytest.raises(ValueError, match="warmup_steps"):
        check_params(tree, params_file)


def test_a_key_of_another_choice_is_named_as_the_file_has_it(params_file: Path) -> None:
    for overlay, message in [
        ({"stage1": {"augmentation": {"rotate": 5.0}}}, r"  stage1\.augmentation\.rotate: Extra .*\(found 5\.0\)$"),
        ({"stage2": {"augmentation": {"name": "blur"}}}, r"  stage2\.augmentation\.name: .*'auto_augment'"),
        ({"stage1": {"num_views": 2}}, r"  stage1: .*num_views is 2, but with augmentation 'none' all views are one"),
        ({"stage2": {"num_views": 2}}, r"  stage2\.num_views: Extra inputs"),
        ({"init": {"from": "weigths"}}, r"  init\.from: .*'warm_start', 'towers', 'weights'"),
        ({"init": {"from": "weights", "path": "x", "weights": "../y", "vocabulary": None}},
         r"  init\.weights: .*inside it"),
        ({"init": {"warm_start": {"schedule": {"num_epochs": 2}}}}, r"  init\.warm_start\.schedule: .*one of them"),
        ({"model": {"name": "custom", "embed_dm": 3}}, r"  model\.embed_dm: .*did you mean embed_dim"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            check_params(merged(read_yaml(params_file), overlay), params_file)


def test_a_schedule_in_epochs_is_as_long_as_its_pairs_and_its_warmup_at_most_a_quarter() -> None:
    schedule = Schedule(num_steps=None, num_epochs=3, warmup_steps=8, peak_lr=1e-3)
    assert num_steps_of(schedule, num_pairs=300, global_batch=100) == 9
    assert num_steps_of(schedule, num_pairs=301, global_batch=100) == 12  # the last batch is filled up
    assert [warmup_of(schedule, num_steps) for num_steps in (1, 7, 9, 32, 900)] == [0, 1, 2, 8, 8]
    as_asked_for = Schedule(num_steps=9, num_epochs=None, warmup_steps=8, peak_lr=1e-3)
    assert warmup_of(as_asked_for, 9) == 8
    assert num_steps_of(Schedule(num_steps=0, num_epochs=None, warmup_steps=0, peak_lr=1e-3), 9, 9) == 0


def test_attention_heads_must_share_the_width(params_file: Path) -> None:
    tower = {"name": "bert", "options": {"hidden_size": 100, "num_attention_heads": 3}}
    image_tower = {"name": "resnet10t", "options": {}}
    own = {"name": "custom", "image_tower": image_tower, "text_tower": tower, "embed_dim": 8}
    tree = merged(read_yaml(params_file), {"model": own})
    with pytest.raises(ValueError, match=r"model\.text_tower: .*hidden_size \(100\) must be a multiple"):
        check_params(tree, params_file)


def test_a_gate_on_a_metric_that_is_never_measured_is_refused(params_file: Path) -> None:
    tree = merged(read_yaml(params_file), {"gates": {"seen.text_to_image_mean_recal": 0.1, "zero_shot.recall": 0.1}})
    with pytest.raises(ValueError, match="1 wrong") as error:
        check_params(tree, params_file)
    message = str(error.value)
    assert "'seen.text_to_image_mean_recal'; did you mean seen.text_to_image_mean_recall?" in message
    assert "no metric 'zero_shot.recall'" in message
    assert "(zero_shot).(top1_accuracy | seen_top1_accuracy | unseen_top1_accuracy)" in message


def test_the_metrics_for_gates_are_those_that_are_measured(tmp_path: Path) -> None:
    rows = [(f"p{i}", name, i < 2, "ab"[i % 2]) for i, name in enumerate("猫狗马牛")]
    store = make_split(tmp_path / "packed", [*rows, ("p0", "毛", True, "a")], words="毛")
    eye = np.eye(5, dtype=np.float32)
    params = load_params(ROOT / "params.yaml").evaluate
    found = measure(Features(eye, eye[:4], ["a", "b"], eye[:2]), read_benchmark(store), params, seed=1)
    measured = {
        f"{group}.{name}"
        for group, named in found.items()
        for name, entry in named.items()
        if isinstance(entry, dict) and not name.endswith("_median_rank")  # of which less is better
    }
    assert measured == {f"{group}.{name}" for groups, names in METRICS for group in groups for name in names}


@pytest.mark.parametrize("recipe", [None, ROOT / "recipes" / "table.yaml"])
def test_a_wrong_key_of_the_data_is_named_as_the_file_has_it(recipe: Path | None, params_file: Path) -> None:
    tree = merged(read_yaml(params_file), read_yaml(recipe) if recipe else {})
    with pytest.raises(ValueError, match=r"  data\.sorce: .*did you mean source"):
        check_params(merged(tree, {"data": {"sorce": "emoji"}}), params_file)
    with pytest.raises(ValueError, match=r"  data\.path: .*valid string"):
        check_params(merged(tree, {"data": {"path": 3}}), params_file)
    with pytest.raises(ValueError, match=r"  data\.source: .*'emoji', 'iconpark', 'table', 'muge'"):
        check_params(merged(tree, {"data": {**tree["data"], "source": "emoij"}}), params_file)


def test_an_unquoted_date_is_named(params_file: Path) -> None:
    params_file.write_text(
        params_file.read_text(encoding="utf-8").replace("path: .cache/emoji", "path: 2024-05-01"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"params\.yaml: .*\n  data\.path: date 2024-05-01 .*quotes"):
        load_params(params_file)


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        (
            {"text_start": {"from": "bert_folder", "path": "pretrained", "bert_folder": "roberta"}},
            r"^text_start\.bert_folder: pretrained/roberta: no such file or folder",
        ),
        (read_yaml(ROOT / "recipes/muge.yaml"), r"^data\.path: .*MUGE: no such file or folder; put it there"),
    ],
)
def test_a_file_that_is_not_there_is_named_before_anything_runs(overlay: dict, said: str, params_file: Path) -> None:
    tree = merged(read_yaml(params_file), overlay)
    with pytest.raises(ValueError, match=said):
        check_files(check_params(tree, params_file))


def test_a_missing_or_broken_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")


def test_a_recipe_for_one_stage_leaves_the_others_alone_though_yaml_anchors_are_shared(
    params_file: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stage1: {optimizer: {weight_decay: 0.5}}\n")
    before = load_params(params_file)
    apply_recipes([recipe], params_file)
    after = load_params(params_file)
    assert after.stage1.optimizer.weight_decay == 0.5
    assert after.stage2 == before.stage2
    assert after.init == before.init


def test_a_wrong_recipe_changes_nothing(params_file: Path, tmp_path: Path) -> None:
    before = params_file.read_bytes()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stage1: {optimiser: {weight_decay: 0.5}}\n")
    with pytest.raises(ValueError, match=r"stage1\.optimiser"):
        apply_recipes([recipe], params_file)
    assert params_file.read_bytes() == before
