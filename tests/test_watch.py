"""What a training makes of its validation: the best weights, a stall, a fall below the start; and of a lost step."""

from pathlib import Path

import pytest
import torch

from clip_core.config.training import Best
from clip_core.data.batches import Batch, TrainingBatches
from clip_core.data.pictures import decoded
from clip_core.data.store import Store
from clip_core.errors import UserError
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP
from clip_core.text import parse_tokenizer
from clip_core.train import loop
from clip_core.train.loop import train
from clip_core.train.watch import RECALL, Validation
from tests.tiny import IMAGE_SIZE, INTERVAL, tiny_clip, tiny_store, tiny_tokenizer_json, tiny_training

RECALLS = (0.3, 0.2, 0.5, 0.4, 0.4, 0.9, 1.0)  # of the start, and then of every second step


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("watch") / "store")


class Script:
    """A validation that says what stands in RECALLS, and remembers the weights that it saw."""

    def __init__(self, measured: int = 0) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []
        self._measured = measured

    def __call__(self, model: CLIP) -> dict[str, float]:
        self.seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {RECALL: RECALLS[self._measured + len(self.seen) - 1]}


def run(store: Store, work: Path, script: Script, **changes: object) -> CLIP:
    params, tokenizer_json = tiny_training(num_steps=12).model_copy(update=changes), tiny_tokenizer_json(store)
    model, pictures = tiny_clip(tokenizer_json), decoded(store, IMAGE_SIZE, Preprocessing())
    work.mkdir(parents=True, exist_ok=True)
    with TrainingBatches(store, pictures, parse_tokenizer(tokenizer_json, 16), params, seed=1) as batches:
        train(batches, model, model.encode_images, work, INTERVAL, Validation(2, script))
    return model


def same(model: CLIP, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def measured_at(work: Path) -> list[str]:
    return [row.split(",")[0] for row in (work / "validation.csv").read_text().split()[1:]]


def test_a_training_that_stalls_ends_with_the_best_weights_also_when_it_is_started_again(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, script = tmp_path / "tiny" / "run", Script()
    model = run(store, work, script, keep=Best(every=2, patience=2))
    assert measured_at(work) == ["0", "2", "4", "6", "8"]  # none better after 4
    assert same(model, script.seen[2]) and not same(model, script.seen[4])
    assert "kept: the weights after step 4, with a recall of 0.5000" in capsys.readouterr().out

    again = Script(measured=5)  # as if it had been killed before its weights were published
    assert same(run(store, work, again, keep=Best(every=2, patience=2)), script.seen[2])
    assert again.seen == []


def test_the_last_weights_are_kept_unless_the_best_are_asked_for_and_a_fall_below_the_start_is_told_once(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = Script()
    assert same(run(store, tmp_path / "tiny" / "last", last), last.seen[-1])
    assert measured_at(tmp_path / "tiny" / "last") == ["0", "2", "4", "6", "8", "10", "12"]
    assert capsys.readouterr().out.count("warning: recall 0.2000 is below the start's 0.3000") == 1
    best = Script()
    assert same(run(store, tmp_path / "tiny" / "best", best, keep=Best(every=4, patience=None)), best.seen[2])


def test_a_step_that_is_not_finite_is_left_out_where_that_is_allowed_and_one_more_is_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = loop.backward

    def poisoned(*arguments: object) -> torch.Tensor:
        batch = arguments[3]
        assert isinstance(batch, Batch)
        loss = real(*arguments)  # ty: ignore[invalid-argument-type]
        numbers.append(len(numbers) + 1)
        return loss * torch.inf if numbers[-1] in (3, 9) else loss

    monkeypatch.setattr(loop, "backward", poisoned)
    numbers: list[int] = []
    work = tmp_path / "tiny" / "run"
    model = run(store, work, Script(), max_skipped_steps=2)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert sorted(path.name for path in work.glob("not-finite*")) == [f"not-finite-at-step-{n}.txt" for n in (3, 9)]
    assert capsys.readouterr().out.count("is left out: with learning rate") == 2
    numbers.clear()
    with pytest.raises(UserError, match=r"at step 9, .*`max_skipped_steps` \(1\)"):
        run(store, tmp_path / "tiny" / "other", Script(), max_skipped_steps=1)
