"""Distillation: the student comes near a frozen teacher, row by row, and what is saved is the student alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip_core.config.loader import IN_PROCESS
from clip_core.config.stage2 import Distill
from clip_core.config.training import NoAugmentation, Training
from clip_core.data.batches import Batch, TrainingBatches
from clip_core.data.store import Store
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.weights import save_weights
from clip_core.text import parse_tokenizer
from clip_core.train import loss as losses
from clip_core.train.distillation import cosine_loss, relation_loss
from clip_core.train.setup import Setup
from clip_core.train.teacher import Teacher
from tests.tiny import ENGLISH, MADE, tiny_architecture, tiny_store, tiny_tokenizer_json, tiny_training
from tests.variants import vit_clip

WIDTH = 12  # of the teacher's features; the student's is 8
COSINE = Distill(weights="teacher", images=True, texts=True, loss="cosine", weight=0.5)
RELATION = COSINE.model_copy(update={"loss": "relation"})
PLAIN = NoAugmentation(name="none")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("distillation") / "packed" / "train")


@pytest.fixture(autouse=True)
def files(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a teacher of another width, another size of pictures and other tokens."""
    monkeypatch.chdir(tmp_path)
    save_teacher(tmp_path / "teacher", store, WIDTH)
    return tmp_path


def save_teacher(folder: Path, store: Store, width: int) -> None:
    tokenizer_json = tiny_tokenizer_json(store, ENGLISH)
    other = {"embed_dim": width, "image_size": 48, "context_length": 9}
    save_weights(make_clip(tiny_architecture(tokenizer_json).model_copy(update=other), 2), tokenizer_json, folder, MADE)


def lesson_of(
    distill: Distill, student: CLIP, store: Store, files: Path, params: Training | None = None
) -> tuple[Teacher, Batch]:
    """The teacher, and a batch with what it is shown."""
    params = params or tiny_training()
    teacher = Setup(params, 1, False, distill=distill, files=files).teacher(student, store, IN_PROCESS)
    assert teacher
    images = Setup(params, 1, False).pictures(store, contract_of(student))
    tokenizer = parse_tokenizer(tiny_tokenizer_json(store), 16)
    with TrainingBatches(store, images, tokenizer, params, 1, show=teacher.shown) as batches:
        return teacher, batches.batch(1)


def contract_of(model: CLIP):
    from clip_core.model.contract import Contract

    return Contract(architecture=model.architecture, made=MADE)


def unit(seed: int, rows: int = 5, width: int = 8) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


def test_the_cosine_loss_is_one_less_the_mean_cosine() -> None:
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    teacher = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert cosine_loss(features, teacher).item() == pytest.approx(1 - (0.0 + 0.6) / 2)
    assert cosine_loss(3 * features, features).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("at_once", [2**22, 2 * 5])
def test_the_relation_loss_is_the_divergence_written_out(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    images, texts = unit(1).requires_grad_(), unit(2).requires_grad_()
    factor, teacher, teacher_factor = torch.tensor(3.0, requires_grad=True), (unit(3, 5, 6), unit(4, 5, 6)), 7.0

    def by_hand() -> Tensor:
        own, wanted = factor * images @ texts.T, teacher_factor * teacher[0] @ teacher[1].T
        total = torch.tensor(0.0)
        for logits, other in ((own, wanted), (own.T, wanted.T)):
            p, q = other.exp() / other.exp().sum(1, keepdim=True), logits.exp() / logits.exp().sum(1, keepdim=True)
            total = total + (p * (p / q).log()).sum() / 5
        return total / 2

    wanted = by_hand()
    gradients = torch.autograd.grad(wanted, (images, texts, factor))
    found = relation_loss((images, texts), factor, teacher, torch.tensor(teacher_factor))
    assert torch.allclose(found, wanted, atol=1e-6)
    for one, other in zip(torch.autograd.grad(found, (images, texts, factor)), gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("distill", [COSINE, RELATION])
def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(distill: Distill, store: Store, files: Path) -> None:
    student = vit_clip(tiny_tokenizer_json(store), dropout=0.0)
    save_weights(student, tiny_tokenizer_json(store), files / "itself", MADE)
    params = tiny_training().model_copy(update={"augmentation": PLAIN})
    itself = distill.model_copy(update={"weights": "itself"})
    teacher, batch = lesson_of(itself, student, store, files, params)
    assert student.teacher_projection is None
    lesson = teacher.lesson(student, batch)
    found = lesson(student.encode_images(batch.images), student.encode_texts(batch.token_ids))
    assert found.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("images", "texts"), [(True, False), (False, True), (True, True)])
def test_each_side_that_is_taught_is_compared_with_the_teachers_features_of_its_own_row(
    images: bool, texts: bool, store: Store, files: Path
) -> None:
    """The oracle: the teacher's `Predictor` on the batch's own pictures and captions."""
    from clip_core.inference.predictor import load

    student, distill = (
        vit_clip(tiny_tokenizer_json(store)),
        COSINE.model_copy(update={"images": images, "texts": texts}),
    )
    teacher, batch = lesson_of(distill, student, store, files)
    assert student.teacher_projection is not None
    params, oracle = tiny_training(), load(files / "teacher")
    tokenizer = parse_tokenizer(tiny_tokenizer_json(store), 16)
    named = TrainingBatches(store, teacher.shown.images or Nothing(), tokenizer, params, 1).named(1)
    ids, captions = zip(*(line.split(": ", 1) for line in named), strict=True)
    places = [next(i for i in range(len(store)) if store.ids_of([i]) == [name]) for name in ids]
    wanted = (
        torch.from_numpy(oracle.encode_images([store.image_bytes(i) for i in places])),
        torch.from_numpy(oracle.encode_texts(captions)),
    )
    own = unit(1, 8), unit(2, 8)
    taught = [i for i, is_taught in enumerate((images, texts)) if is_taught]
    cosines = torch.stack([torch.cosine_similarity(student.teacher_projection(own[i]), wanted[i]) for i in taught])
    assert teacher.lesson(student, batch)(*own).item() == pytest.approx(0.5 * (1 - cosines.mean().item()), abs=1e-5)
