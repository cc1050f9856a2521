"""Distillation: the student comes near a frozen teacher, row by row, and what is saved is the student alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clip_core.all_params import check_files, check_params
from clip_core.config.loader import IN_PROCESS
from clip_core.config.stage2 import Distill
from clip_core.config.training import NoAugmentation, Training
from clip_core.data.batches import Batch, TrainingBatches
from clip_core.data.pictures import decoded
from clip_core.data.store import Store, open_store
from clip_core.errors import UserError
from clip_core.image import Preprocessing
from clip_core.inference.predictor import load
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.weights import load_weights, save_weights
from clip_core.params_file import read_yaml
from clip_core.recipe import merged
from clip_core.text import parse_tokenizer
from clip_core.train import loss as losses
from clip_core.train.backward import backward
from clip_core.train.distillation import cosine_loss, relation_loss
from clip_core.train.loop import train
from clip_core.train.setup import Setup
from clip_core.train.teacher import Teacher, check_teacher
from stages.ablation_arm import main as ablation_arm
from stages.ablation_arms import arms_of
from stages.command import sections_of
from tests.conftest import ROOT
from tests.sentences import many, sentence_store
from tests.stage_calls import call
from tests.test_grad_cache import assert_close
from tests.test_resume import Stopped, StoppingBatches
from tests.tiny import (
    ENGLISH,
    IMAGE_SIZE,
    INTERVAL,
    MADE,
    tiny_architecture,
    tiny_store,
    tiny_tokenizer_json,
    tiny_training,
)
from tests.variants import vit_clip

COSINE = Distill(weights="teacher", images=True, texts=True, loss="cosine", weight=0.5)
RELATION = COSINE.model_copy(update={"loss": "relation"})
AS_THEY_ARE = tiny_training().model_copy(update={"augmentation": NoAugmentation(name="none")})


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for split in ("train", "valid"):
        tiny_store(folder / split)
    return folder


@pytest.fixture
def store(packed: Path) -> Store:
    return open_store(packed / "train")


@pytest.fixture(autouse=True)
def files(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a teacher that has another width, another size of pictures and other tokens than the student."""
    monkeypatch.chdir(tmp_path)
    tokenizer_json = tiny_tokenizer_json(store, ENGLISH)
    other = {"embed_dim": 12, "image_size": 48, "context_length": 9}
    teacher = make_clip(tiny_architecture(tokenizer_json).model_copy(update=other), 2)
    save_weights(teacher, tokenizer_json, tmp_path / "files" / "teacher", MADE)
    return tmp_path / "files"


def taught(
    distill: Distill, student: CLIP, store: Store, files: Path, params: Training = AS_THEY_ARE
) -> tuple[Teacher, TrainingBatches]:
    """The student's teacher, and the batches that both see."""
    teacher = Setup(params, 1, False, distill=distill, files=files).teacher(student, store, IN_PROCESS)
    assert teacher
    tokenizer = parse_tokenizer(tiny_tokenizer_json(store), 16)
    pictures = decoded(store, IMAGE_SIZE, Preprocessing())
    return teacher, StoppingBatches(store, pictures, tokenizer, params, 1, show=teacher.shown)


def unit(seed: int, rows: int = 5, width: int = 8) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


def test_the_cosine_loss_is_one_less_the_mean_cosine() -> None:
    features, teacher = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert cosine_loss(features, teacher).item() == pytest.approx(1 - (0.0 + 0.6) / 2)
    assert cosine_loss(3 * features, features).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("at_once", [2**22, 2 * 5])
def test_the_relation_loss_is_the_divergence_written_out(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    images, texts, teacher = unit(1).requires_grad_(), unit(2).requires_grad_(), (unit(3, width=6), unit(4, width=6))
    factor, teacher_factor = torch.tensor(3.0, requires_grad=True), torch.tensor(7.0)
    own, its, wanted = factor * images @ texts.T, teacher_factor * teacher[0] @ teacher[1].T, torch.zeros(())
    for logits, other in ((own, its), (own.T, its.T)):
        p, q = other.exp() / other.exp().sum(1, keepdim=True), logits.exp() / logits.exp().sum(1, keepdim=True)
        wanted = wanted + (p * (p / q).log()).sum() / (2 * 5)

    found = relation_loss((images, texts), factor, teacher, teacher_factor)
    assert torch.allclose(found, wanted, atol=1e-6)
    learned = images, texts, factor
    for one, other in zip(torch.autograd.grad(found, learned), torch.autograd.grad(wanted, learned), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("distill", [COSINE, RELATION])
def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(distill: Distill, store: Store, files: Path) -> None:
    student, tokenizer_json = vit_clip(tiny_tokenizer_json(store)).eval(), tiny_tokenizer_json(store)
    save_weights(student, tokenizer_json, files / "itself", MADE)
    teacher, batches = taught(distill.model_copy(update={"weights": "itself"}), student, store, files)
    assert student.teacher_projection is None, "the widths agree"
    batch = batches.batch(1)
    features = student.encode_images(batch.images), student.encode_texts(batch.token_ids)
    assert teacher.lesson(student, batch)(*features).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("images", "texts"), [(True, False), (False, True), (True, True)])
def test_a_row_is_compared_with_what_the_teacher_makes_of_its_own_picture_and_caption(
    images: bool, texts: bool, store: Store, files: Path
) -> None:
    """The oracle: the teacher as `clip_core.load` gives it, asked about the batch's pictures and captions."""
    student = vit_clip(tiny_tokenizer_json(store))
    distill = COSINE.model_copy(update={"images": images, "texts": texts})
    teacher, batches = taught(distill, student, store, files, tiny_training())
    ids, captions = zip(*(line.split(": ", 1) for line in batches.named(2)), strict=True)
    place, oracle = {store.ids_of([i])[0]: i for i in range(len(store))}, load(files / "teacher")
    pictures = [store.image_bytes(place[name]) for name in ids]
    wanted = [torch.from_numpy(rows) for rows in (oracle.encode_images(pictures), oracle.encode_texts(captions))]
    own, projection = (unit(1, 8), unit(2, 8)), student.teacher_projection
    assert projection is not None
    cosines = [torch.cosine_similarity(projection(own[i]), wanted[i]) for i in range(2) if (images, texts)[i]]
    by_hand = 0.5 * (1 - torch.stack(cosines).mean().item())
    assert teacher.lesson(student, batches.batch(2))(*own).item() == pytest.approx(by_hand, abs=1e-5)


def test_where_a_picture_is_broken_the_teacher_sees_the_row_in_its_place(tmp_path: Path, files: Path) -> None:
    store = sentence_store(tmp_path / "made", many(3, 20), broken=["01-004", "02-011"])
    student, tokenizer_json = vit_clip(tiny_tokenizer_json(store)), tiny_tokenizer_json(store)
    save_weights(student, tokenizer_json, files / "itself", MADE)
    params = AS_THEY_ARE.model_copy(update={"global_batch": 40})
    _, batches = taught(COSINE.model_copy(update={"weights": "itself"}), student, store, files, params)
    oracle = load_weights(files / "itself")
    for step in range(1, 4):
        batch = batches.batch(step)
        assert batch.shown
        assert torch.equal(batch.shown.token_ids, batch.token_ids)
        with torch.no_grad():
            assert torch.allclose(batch.shown.image_features, oracle.encode_images(batch.images), atol=1e-5)
    assert batches.broken


def one_step(distill: Distill, micro_batch: int | None, store: Store, files: Path) -> tuple[float, dict[str, Tensor]]:
    student = vit_clip(tiny_tokenizer_json(store), dropout=0.0)
    params = AS_THEY_ARE.model_copy(update={"micro_batch": micro_batch})
    teacher, batches = taught(distill, student, store, files, params)
    batch: Batch = batches.batch(1)
    loss = backward(params, student, student.encode_images, batch, 5, teacher.lesson(student, batch)).item()
    return loss, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("distill", [COSINE, RELATION])
def test_gradient_caching_gives_the_gradients_of_the_plain_step(distill: Distill, store: Store, files: Path) -> None:
    plain = one_step(distill, None, store, files)
    # the softmaxes of two nearly random models differ by little, which rounding is a larger part of
    assert_close(one_step(distill, 3, store, files), plain, rtol=2e-2 if distill.loss == "relation" else 1e-3)
    assert ("teacher_projection.weight" in plain[1]) == (distill.loss == "cosine")


def run(store: Store, files: Path, work: Path, stop_at: int = 0) -> tuple[CLIP, Teacher]:
    """Trains a new student, as a new process would."""
    student, params = vit_clip(tiny_tokenizer_json(store)), tiny_training(num_steps=8)
    teacher, batches = taught(COSINE, student, store, files, params)
    assert isinstance(batches, StoppingBatches)
    batches.stop_at = stop_at
    work.mkdir(parents=True, exist_ok=True)
    train(batches, student, student.encode_images, work, INTERVAL, teacher=teacher)
    return student, teacher


def test_the_projection_trains_and_the_teacher_stays_as_it_is_to_the_bit(
    store: Store, files: Path, tmp_path: Path
) -> None:
    student, teacher = run(store, files, tmp_path / "tiny" / "run")
    before = load_weights(files / "teacher").state_dict()
    assert not teacher.model.training
    assert {"logit_scale", "text_projection.weight"} <= teacher.model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())
    untrained = vit_clip(tiny_tokenizer_json(store))
    taught(COSINE, untrained, store, files)
    assert student.teacher_projection is not None and untrained.teacher_projection is not None
    assert (student.teacher_projection.weight - untrained.teacher_projection.weight).abs().max() > 0.01


def test_stopping_and_resuming_changes_nothing(store: Store, files: Path, tmp_path: Path) -> None:
    wanted = run(store, files, tmp_path / "tiny" / "undisturbed")[0].state_dict()
    with pytest.raises(Stopped):
        run(store, files, tmp_path / "tiny" / "run", stop_at=7)
    found = run(store, files, tmp_path / "tiny" / "run")[0].state_dict()
    assert "teacher_projection.weight" in found
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def params_file(tmp_path: Path, distill: dict | None = None, **changes: object) -> Path:
    step = {"schedule": {"num_steps": 1, "warmup_steps": 0}, "global_batch": 8}
    taught = {"path": str(tmp_path / "files"), "distill": json.loads(COSINE.model_dump_json()) | (distill or {})}
    overlay = {"stage1": step, "stage2": step | taught | changes}
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps(merged(read_yaml(ROOT / "params.yaml"), overlay)), encoding="utf-8")
    return file


@pytest.fixture
def start(store: Store, tmp_path: Path) -> Path:
    tokenizer_json = tiny_tokenizer_json(store)
    save_weights(vit_clip(tokenizer_json), tokenizer_json, tmp_path / "start", MADE)
    return tmp_path / "start"


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4, "dropout": 0.0}])
def test_the_weights_that_the_stage_makes_are_a_plain_model(
    lora: dict | None, packed: Path, start: Path, tmp_path: Path
) -> None:
    file = params_file(tmp_path, lora=lora)
    call("stage2", file, packed, start, tmp_path / "out", tmp_path / "curves")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as made:
        assert set(made.keys()) == load_weights(start).state_dict().keys()
    assert load(tmp_path / "out").encode_texts(["红色"]).shape == (1, 8)


def test_another_teacher_of_the_same_name_makes_other_weights_under_another_name(
    packed: Path, start: Path, store: Store, files: Path, tmp_path: Path
) -> None:
    file, made = params_file(tmp_path), []
    for seed in (2, 3):
        tokenizer_json = tiny_tokenizer_json(store)
        save_weights(vit_clip(tokenizer_json, seed=seed), tokenizer_json, files / "teacher", MADE)
        call("stage2", file, packed, start, tmp_path / f"out{seed}", tmp_path / "curves")
        made.append(json.loads((tmp_path / f"out{seed}" / "model.json").read_text())["made"]["params"])
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("distill", "told"),
    [
        ({"weights": "nobody"}, r"^stage2\.distill\.weights: .*nobody: no such file or folder; put it there"),
        ({"weights": "empty"}, r"empty: not a weights folder: it has no model\.json"),
        ({"weights": "torn"}, r"^stage2\.distill\.weights: .*torn/model\.safetensors: no such file"),
        ({"weights": "../teacher"}, r"must be relative to the section's `path` and inside it"),
        ({"images": False, "texts": False}, "images and texts are both false"),
        ({"loss": "relation", "texts": False}, "loss 'relation' is between pictures and texts"),
    ],
)
@pytest.mark.parametrize("stage", ["init", "stage2"])
def test_a_teacher_that_is_none_is_refused_by_name_before_anything_long(
    stage: str, distill: dict, told: str, packed: Path, start: Path, files: Path, tmp_path: Path
) -> None:
    (files / "empty").mkdir()
    torn = files / "torn"
    torn.mkdir()
    for name in ("model.json", "tokenizer.json"):
        (torn / name).write_bytes((files / "teacher" / name).read_bytes())
    places = [packed, tmp_path / "out"] if stage == "init" else [packed, start, tmp_path / "out"]
    with pytest.raises(UserError, match=told):
        call(stage, params_file(tmp_path, distill), *places, tmp_path / "curves")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".work").exists()


def test_a_teacher_that_is_not_there_is_named_before_any_stage(tmp_path: Path) -> None:
    file = params_file(tmp_path, {"weights": "nobody"})
    with pytest.raises(UserError, match=r"^stage2\.distill\.weights: .*nobody: no such file or folder"):
        check_files(check_params(read_yaml(file), file))


def test_a_teacher_with_the_tokenizer_of_another_is_refused(store: Store, files: Path) -> None:
    (files / "teacher" / "tokenizer.json").write_text(tiny_tokenizer_json(store), encoding="utf-8")
    with pytest.raises(UserError, match="both files must be of one model"):
        check_teacher(files / "teacher")


def test_the_papers_ablation_has_no_teacher(tmp_path: Path) -> None:
    params = sections_of(ablation_arm, "stages.ablation_arm", params_file(tmp_path))["params"]
    with pytest.raises(UserError, match=r"stage2\.distill: the paper's ablation has no teacher: set it to null"):
        arms_of(params)  # ty: ignore[invalid-argument-type]
