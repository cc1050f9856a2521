"""Every recipe, and every combination that is advised, is valid, says what the paper says, and is able to run."""

import tempfile
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from clip_core.all_params import load_params
from clip_core.config.init import FromTowers, FromWeights
from clip_core.config.model import CustomModel
from clip_core.config.params import Params
from clip_core.errors import UserError
from clip_core.params_file import read_yaml
from clip_core.recipe import BEHIND, apply_recipes, main, overlays
from clip_core.train.devices import KINDS
from clip_core.train.plan import Stages
from clip_core.train.planned import Devices, Plan
from clip_core.train.schedule import num_steps_of, warmup_of
from tests.conftest import ROOT, run_in

RECIPES = ROOT / "recipes"
MODELS = ("rn50", "vit-b-16", "vit-l-14", "vit-l-14-336", "vit-h-14")
SIGLIP2 = {"b": 512, "l": 128}  # the sizes that are adapted, and the micro batch for 80 GB
BENCHMARKS = ("muge", "flickr30k-cn", "coco-cn")
# The paper's appendix on pretraining: epochs of stage 1, global batch and epochs of stage 2.
PRETRAINING = {
    "rn50": (20, 16_384, 44),
    "vit-b-16": (44, 16_384, 15),
    "vit-l-14": (64, 4_608, 7),
    "vit-h-14": (26, 32_768, 7),
}
# The paper's table 9, for MUGE, Flickr30K-CN and COCO-CN: global batch, peak learning rate, epochs, warm-up steps.
FINETUNING = {
    "rn50": [(24_576, 5e-5, 60, 100), (24_576, 6e-5, 30, 20), (24_576, 5e-5, 40, 6)],
    "vit-b-16": [(12_800, 2e-5, 20, 40), (7_680, 5e-5, 16, 20), (12_800, 5e-5, 30, 6)],
    "vit-l-14": [(4_096, 3e-5, 20, 100), (4_096, 2e-5, 16, 60), (4_096, 6e-5, 18, 9)],
    "vit-l-14-336": [(8_192, 2e-5, 20, 100), (8_192, 2e-5, 18, 20), (8_192, 4e-5, 18, 2)],
    "vit-h-14": [(20_480, 2e-5, 20, 20), (4_096, 6e-6, 18, 6), (5_120, 2e-5, 18, 10)],
}
OURS = {("rn50", "coco-cn"): (16_384, 5e-5, 40, 6)}  # steps, not epochs; recipes/README.md says why
NUM_PAIRS = {"muge": 250_314, "flickr30k-cn": 148_915, "coco-cn": 20_065}  # recipes/README.md says where from
NUM_PICTURES = {"flickr30k-cn": 148_915 // 5, "coco-cn": 18_341}  # five captions each; its own page; MUGE's is unknown
SMALL_GPU = 24  # GiB, of which a tenth goes elsewhere
STEPS = {  # the paper's epochs times batches, the last one filled up
    ("rn50", "muge"): 660,
    ("vit-b-16", "muge"): 400,
    ("vit-l-14", "muge"): 1_240,
    ("vit-l-14-336", "muge"): 620,
    ("vit-h-14", "muge"): 260,
    ("rn50", "flickr30k-cn"): 210,
    ("vit-b-16", "flickr30k-cn"): 320,
    ("vit-l-14", "flickr30k-cn"): 592,
    ("vit-l-14-336", "flickr30k-cn"): 342,
    ("vit-h-14", "flickr30k-cn"): 666,
    ("rn50", "coco-cn"): 40,
    ("vit-b-16", "coco-cn"): 60,
    ("vit-l-14", "coco-cn"): 90,
    ("vit-l-14-336", "coco-cn"): 54,
    ("vit-h-14", "coco-cn"): 72,
}
COMBINATIONS = [
    *[(recipe.stem,) for recipe in sorted(RECIPES.glob("*.yaml")) if BEHIND not in read_yaml(recipe)],
    ("smoke", "table"),
    *product(["table"], [f"pretrain-{model}" for model in MODELS]),
    *product(["table"], [f"pretrain-{model}" for model in MODELS], ["single-gpu"]),
    *product(["table"], [f"finetune-{model}" for model in MODELS]),
    *product(["table"], [f"adapt-{size}-16-siglip2" for size in SIGLIP2]),
    *product(["table"], [f"adapt-{size}-16-siglip2" for size in SIGLIP2], ["single-gpu"]),
    *product(BENCHMARKS, [f"finetune-{model}" for model in MODELS]),
    *product(
        BENCHMARKS, [f"finetune-{model}" for model in MODELS], ["single-gpu", "small-batch", "best-step", "evaluate"]
    ),
    *product(["table"], [f"finetune-{model}" for model in MODELS], ["evaluate"]),
]


@cache  # the tests ask for the same ones again and again
def merged_with(*names: str) -> tuple[Params, dict]:
    """params.yaml with the recipes merged in, also as the tree in the file."""
    with tempfile.TemporaryDirectory() as folder:
        params_file = Path(folder, "params.yaml")
        params_file.write_bytes((ROOT / "params.yaml").read_bytes())
        apply_recipes([RECIPES / f"{name}.yaml" for name in names], params_file)
        assert "# image tower frozen" in params_file.read_text(encoding="utf-8")  # comments stay
        return load_params(params_file), read_yaml(params_file)


def with_recipes(*names: str) -> Params:
    return merged_with(*names)[0]


@pytest.mark.parametrize("names", COMBINATIONS, ids=" ".join)
def test_every_recipe_and_combination_is_valid_and_each_of_its_values_arrives(names: tuple[str, ...]) -> None:
    _, tree = merged_with(*names)
    *_, (_, last) = overlays([RECIPES / f"{name}.yaml" for name in names])
    assert differing(last, tree) == []


def differing(overlay: object, tree: object, place: str = "") -> list[str]:
    if isinstance(overlay, dict) and isinstance(tree, dict):
        return [found for key in overlay for found in differing(overlay[key], tree.get(key), f"{place}.{key}")]
    return [] if overlay == tree else [place]


@pytest.mark.parametrize("model", MODELS)
def test_pretraining_is_the_papers(model: str) -> None:
    params = with_recipes("table", f"pretrain-{model}")
    check_common(params, model)
    schedule = params.stage2.schedule
    assert (schedule.peak_lr, schedule.warmup_steps) == (2e-5, 5_000)
    if model == "vit-l-14-336":  # from L/14, two more epochs; the paper gives no more
        assert isinstance(params.init, FromWeights)
        assert params.stage1.schedule.num_steps == 0
        assert (params.stage2.global_batch, schedule.num_epochs) == (PRETRAINING["vit-l-14"][1], 2)
        return
    assert isinstance(params.init, FromTowers)
    epochs, global_batch, more_epochs = PRETRAINING[model]
    first = params.stage1
    assert (first.global_batch, first.schedule.num_epochs) == (32_768, epochs)
    assert (first.schedule.peak_lr, first.schedule.warmup_steps) == (1e-4, 5_000)
    assert first.optimizer == params.stage2.optimizer and first.augmentation == params.stage2.augmentation
    assert (params.stage2.global_batch, schedule.num_epochs) == (global_batch, more_epochs)
    assert params.stage2.checkpoint_activations == (model == "vit-h-14")


@pytest.mark.parametrize(("model", "benchmark"), [*product(MODELS, BENCHMARKS)])
def test_finetuning_is_the_papers_and_epochs_become_its_steps(model: str, benchmark: str) -> None:
    params = with_recipes(benchmark, f"finetune-{model}")
    check_common(params, model)
    stage, schedule = params.stage2, params.stage2.schedule
    found = stage.global_batch, schedule.peak_lr, schedule.num_epochs or schedule.num_steps, schedule.warmup_steps
    assert found == OURS.get((model, benchmark), FINETUNING[model][BENCHMARKS.index(benchmark)])
    num_steps = num_steps_of(schedule, NUM_PAIRS[benchmark], stage.global_batch)
    assert num_steps == STEPS[model, benchmark]
    assert warmup_of(schedule, num_steps) == schedule.warmup_steps  # none is cut
    assert params.stage1.schedule.num_steps == 0
    assert stage.checkpoint_activations == (model in ("vit-l-14-336", "vit-h-14"))


@pytest.mark.parametrize("size", SIGLIP2)
def test_siglip_2_is_adapted_as_published_and_on_one_gpu_all_stays_but_memory(size: str) -> None:
    params, single = (with_recipes("table", f"adapt-{size}-16-siglip2", *more) for more in ([], ["single-gpu"]))
    assert not isinstance(params.model, CustomModel) and params.model.name == f"siglip2-{size}-16-256"
    assert (params.model.image_size, params.model.context_length, params.stage1.schedule.num_steps) == (256, 64, 0)
    stage, optimizer = params.stage2, params.stage2.optimizer
    schedule = stage.schedule
    assert (schedule.num_epochs, stage.global_batch, schedule.peak_lr, schedule.warmup_steps) == (2, 12_288, 1e-5, 1000)
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.98, 0.1)
    assert stage.loss.name == "sigmoid" and set(optimizer.lr_shares.model_dump().values()) == {1.0}
    assert (stage.micro_batch, single.stage2.micro_batch) == (SIGLIP2[size], 128)
    memory = {"micro_batch", "checkpoint_activations"}
    assert single.stage2.model_dump(exclude=memory) == stage.model_dump(exclude=memory)


def check_common(params: Params, model: str) -> None:
    """What the paper gives for all models and stages."""
    assert not isinstance(params.model, CustomModel) and params.model.name == model
    assert params.model.image_size == (336 if model.endswith("336") else 224)
    assert params.model.context_length == 52
    optimizer, augmentation = params.stage2.optimizer, params.stage2.augmentation
    betas_and_eps = (0.9, 0.999, 1e-8) if model == "rn50" else (0.9, 0.98, 1e-6)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == betas_and_eps
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (1e-3, None)
    assert augmentation.name == "auto_augment" and (augmentation.min_area, augmentation.mirror) == (0.9, 0.5)


@pytest.mark.parametrize(("model", "benchmark"), [*product(MODELS, BENCHMARKS)])
def test_on_one_gpu_all_stays_but_memory_and_with_small_batches_the_learning_rate_is_small(
    model: str, benchmark: str
) -> None:
    whole, single, small = (
        with_recipes(benchmark, f"finetune-{model}", *more).stage2 for more in ([], ["single-gpu"], ["small-batch"])
    )
    assert single.micro_batch is not None and single.micro_batch <= 128
    memory = {"micro_batch", "checkpoint_activations", "precision"}
    assert single.model_dump(exclude=memory) == whole.model_dump(exclude=memory)
    assert (small.global_batch, small.schedule.peak_lr) == (48, 3e-6)
    assert (
        warmup_of(small.schedule, num_steps_of(small.schedule, NUM_PAIRS[benchmark], 48)) == small.schedule.warmup_steps
    )


@pytest.mark.parametrize("model", MODELS)
def test_to_evaluate_is_to_train_nothing(model: str) -> None:
    finetuning, params = (with_recipes("table", f"finetune-{model}", *more) for more in ([], ["evaluate"]))
    assert params.stage1.schedule.num_steps == params.stage2.schedule.num_steps == 0
    assert (params.model, params.init) == (finetuning.model, finetuning.init)


@pytest.mark.parametrize("name", ["evaluate", "small-batch", "best-step"])
def test_what_only_changes_a_finetuning_is_refused_without_one(name: str, tmp_path: Path) -> None:
    params_file = tmp_path / "params.yaml"
    params_file.write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(ValueError, match=f"{name}.yaml: changes a recipe finetune-..., and none is named"):
        apply_recipes([RECIPES / "table.yaml", RECIPES / f"{name}.yaml"], params_file)
    assert params_file.read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_params_that_were_changed_before_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["recipe", str(RECIPES / "smoke.yaml")])
    params_file = tmp_path / "params.yaml"
    params_file.write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "dvc.yaml").touch()
    run_in(tmp_path, "git", "init", "--quiet")
    run_in(tmp_path, "git", "add", "params.yaml")
    run_in(tmp_path, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "params")
    main()
    assert "note:" not in capsys.readouterr().out
    main()  # over what the first one wrote
    assert "note: params.yaml had been changed before" in capsys.readouterr().out


def test_a_section_for_another_recipe_counts_only_beside_it(tmp_path: Path) -> None:
    alone = with_recipes("finetune-vit-b-16")
    assert alone.stage2.global_batch == 48
    (tmp_path / "one.yaml").write_text("seed: 1\nwith two: {seed: 2}\nwith three: {seed: 3}\n")
    (tmp_path / "two.yaml").write_text("pack: {shard_mib: 7}\n")
    with pytest.raises(ValueError, match=r"one\.yaml: section 'with three': there is no recipe three\.yaml"):
        list(overlays([tmp_path / "one.yaml"]))
    (tmp_path / "three.yaml").write_text("seed: 4\n")
    found = [overlay for _, overlay in overlays([tmp_path / "one.yaml", tmp_path / "two.yaml"])]
    assert found == [{"seed": 2}, {"pack": {"shard_mib": 7}}]


def gib(device: str, *names: str) -> float:
    """GiB that the larger of both stages needs with these recipes on one such device; asserts that it is there."""
    stages = Stages.model_validate(with_recipes(*names).model_dump(include=set(Stages.model_fields), by_alias=True))
    most = 0
    for setup in stages.setups().values():
        if setup.params.schedule.num_steps != 0:
            plan = Plan(setup, stages.architecture(), Devices(KINDS[device], 1))
            assert plan.fits(), (names, plan.memory())
            most = max(most, sum(plan.memory().values()))
    return most / 2**30


LARGE = ("vit-l-14", "vit-l-14-336", "vit-h-14")  # counting what they keep takes half a minute each


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=pytest.mark.slow) if model in LARGE else model for model in MODELS]
)
def test_every_recipe_fits_the_device_it_names_and_the_readme_says_what_it_needs_of_it(model: str) -> None:
    finetune, pretrain = f"finetune-{model}", f"pretrain-{model}"
    as_written = [("table", pretrain), *((benchmark, finetune) for benchmark in BENCHMARKS)]
    needs = [gib("a100-80", *names) for names in as_written]
    needs += [gib("a100-80", "table", finetune), gib("a100-80", BENCHMARKS[0], finetune, "small-batch")]
    needs.append(max(gib("a100-80", *names, "single-gpu") for names in as_written))
    assert max(needs[-3:]) < 0.9 * SMALL_GPU
    assert f"| `{model}` | {' | '.join(f'{need:.0f}' for need in needs)} |" in (RECIPES / "README.md").read_text()
    for kind in (finetune, pretrain):
        assert "for one GPU of 80 GB" in (RECIPES / f"{kind}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", ["b", pytest.param("l", marks=pytest.mark.slow)])
def test_adapting_siglip_2_fits_the_devices_it_names_and_the_readme_says_what_it_needs(size: str) -> None:
    whole, single = (gib("a100-80", "table", f"adapt-{size}-16-siglip2", *more) for more in ([], ["single-gpu"]))
    assert single < 0.9 * SMALL_GPU
    assert f"| `siglip2-{size}-16-256` | {whole:.0f} | {single:.0f} |" in (RECIPES / "README.md").read_text()


@pytest.mark.parametrize("names", COMBINATIONS, ids=" ".join)
def test_every_batch_is_whole_micro_batches_and_no_larger_than_the_pictures_are_many(names: tuple[str, ...]) -> None:
    params = with_recipes(*names)
    asked_for = 4_608 if "pretrain-vit-l-14-336" in names else 32_768  # of your own, by the README
    num_pictures = NUM_PICTURES.get(names[0], asked_for)
    for training in (params.stage1, params.stage2):
        assert training.global_batch % (training.micro_batch or training.global_batch) == 0
        if training.schedule.num_steps != 0:
            assert training.global_batch <= num_pictures


STARTING = [f"{kind}-{model}" for kind in ("pretrain", "finetune") for model in MODELS]


@pytest.mark.parametrize("recipe", [*STARTING, *(f"adapt-{size}-16-siglip2" for size in SIGLIP2)])
def test_the_readme_of_the_recipes_names_the_files_that_a_recipe_looks_for(recipe: str) -> None:
    init, model = read_yaml(RECIPES / f"{recipe}.yaml")["init"], recipe.partition("-")[2]
    assert init["path"] == "pretrained"
    assert (ROOT / "pretrained").is_dir()
    text = (RECIPES / "README.md").read_text()
    files = [init[key] for key in ("image_tower", "bert_folder", "weights") if key in init]
    assert files
    for file in files:
        assert f"`{file}`" in text or f"`{file.replace(model, 'MODEL')}`" in text, file


def test_the_readme_of_the_recipes_names_every_recipe() -> None:
    text = (RECIPES / "README.md").read_text()
    for recipe in RECIPES.glob("*.yaml"):
        stem = recipe.stem
        for model in MODELS:
            stem = stem.replace(f"-{model}", "-MODEL") if stem.endswith(f"-{model}") else stem
        assert f"`{stem}`" in text, stem
    assert all(f"`{model}`" in text for model in MODELS)


def test_the_readme_of_the_recipes_says_from_how_many_pairs_the_steps_are_counted() -> None:
    text = (RECIPES / "README.md").read_text()
    assert all(f"{num:,}" in text for num in NUM_PAIRS.values())


def test_a_folder_named_as_a_recipe_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}: can not be read: Is a directory. A YAML file is wanted"):
        apply_recipes([tmp_path], ROOT / "params.yaml")
