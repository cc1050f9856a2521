"""Stopping and resuming changes nothing: weights and curves are those of an undisturbed run, to the bit."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clip_core.data.batches import Batch, TrainingBatches
from clip_core.data.pictures import decoded
from clip_core.data.store import Store
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP
from clip_core.text import parse_tokenizer
from clip_core.train.average import Average
from clip_core.train.log import publish_curves
from clip_core.train.loop import train
from clip_core.train.optimizer import make_optimizer
from clip_core.train.state import resume
from clip_core.train.watch import RECALL, Validation
from tests.tiny import IMAGE_SIZE, INTERVAL, saved, tiny_clip, tiny_store, tiny_tokenizer_json, tiny_training

PARAMS = tiny_training(num_steps=12).model_copy(update={"ema_decay": 0.5})


class Stopped(BaseException):
    """Like a kill: nothing handles it."""


class StoppingBatches(TrainingBatches):
    """Pairs that end the process's work when a step's batch is asked for."""

    stop_at = 0

    def batch(self, step: int) -> Batch:
        if step == self.stop_at:
            raise Stopped
        return super().batch(step)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("resume") / "store")


def run(store: Store, work: Path, stop_at: int = 0) -> CLIP:
    """Trains a new model in `work` as a new process would."""
    tokenizer_json = tiny_tokenizer_json(store)
    pictures = decoded(store, IMAGE_SIZE, Preprocessing())
    batches = StoppingBatches(store, pictures, parse_tokenizer(tokenizer_json, 16), PARAMS, seed=1)
    batches.stop_at = stop_at
    torch.manual_seed(time.time_ns())  # whatever was drawn before must not matter
    model = tiny_clip(tokenizer_json)
    validation = Validation(4, lambda model: {RECALL: model.logit_scale.item()})
    work.mkdir(parents=True, exist_ok=True)
    train(batches, model, model.encode_images, work, INTERVAL, validation)
    return model


@pytest.fixture(scope="module")
def undisturbed(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIP, Path]:
    work = tmp_path_factory.mktemp("undisturbed") / "tiny" / "run"
    return run(store, work), work


@pytest.mark.parametrize("stops", [(3,), (6,), (11,), (8, 12), (6, 6, 11)])
def test_stopping_and_resuming_changes_nothing(
    stops: tuple[int, ...],
    store: Store,
    tmp_path: Path,
    undisturbed: tuple[CLIP, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "tiny" / "run"
    for stop in stops:
        with pytest.raises(Stopped):
            run(store, work, stop)
    capsys.readouterr()

    model = run(store, work)

    resumed = (stops[-1] - 1) // INTERVAL.save_every * INTERVAL.save_every + 1
    told = capsys.readouterr().out
    assert (f"resuming at step {resumed} of 12" in told) == (resumed > 1)
    wanted, found = undisturbed[0].state_dict(), model.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    for curve in ("train.csv", "validation.csv"):
        assert (work / curve).read_bytes() == (undisturbed[1] / curve).read_bytes()


def test_a_row_half_written_is_written_again(store: Store, tmp_path: Path, undisturbed: tuple[CLIP, Path]) -> None:
    work = tmp_path / "tiny" / "run"
    with pytest.raises(Stopped):
        run(store, work, stop_at=9)
    with (work / "train.csv").open("a") as file:
        file.write("1")  # would be step 10, cut short

    run(store, work)

    assert (work / "train.csv").read_bytes() == (undisturbed[1] / "train.csv").read_bytes()


def test_a_finished_training_is_only_published_again(
    store: Store, tmp_path: Path, undisturbed: tuple[CLIP, Path]
) -> None:
    work = tmp_path / "tiny" / "run"
    first = run(store, work).state_dict()
    again = run(store, work, stop_at=1).state_dict()  # asks for no batch at all
    assert all(torch.equal(first[name], again[name]) for name in first)
    publish_curves(work, tmp_path / "curves")
    assert (tmp_path / "curves" / "train.csv").read_bytes() == (undisturbed[1] / "train.csv").read_bytes()


def test_a_checkpoint_holds_step_model_and_optimizer(tmp_path: Path) -> None:
    model = tiny_clip()
    optimizer = make_optimizer(model, PARAMS.optimizer)
    torch.stack([parameter.sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    saved(tmp_path, 7, 12, model, optimizer)

    other = tiny_clip(seed=2)
    fresh = make_optimizer(other, PARAMS.optimizer)
    assert resume(tmp_path, other, fresh, Average(other, None)) == 7

    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        one, other_one = optimizer.state[mine], fresh.state[theirs]
        assert one.keys() == other_one.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[key], other_one[key]) for key in one)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000007.safetensors"]


def test_the_last_two_checkpoints_are_kept(store: Store, tmp_path: Path) -> None:
    work = tmp_path / "tiny" / "run"
    run(store, work)
    kept = sorted(file.name for file in work.glob("checkpoint*"))
    assert kept == ["checkpoint-00000010.safetensors", "checkpoint-00000012.safetensors"]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1000)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_a_torn_or_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: Callable[[Path], None],
    store: Store,
    tmp_path: Path,
    undisturbed: tuple[CLIP, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "tiny" / "run"
    with pytest.raises(Stopped):
        run(store, work, stop_at=12)
    damage(work / "checkpoint-00000010.safetensors")

    model = run(store, work)

    told = capsys.readouterr().out
    assert "checkpoint-00000010.safetensors: torn or damaged" in told
    assert "resuming at step 6 of 12" in told
    wanted, found = undisturbed[0].state_dict(), model.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert (work / "train.csv").read_bytes() == (undisturbed[1] / "train.csv").read_bytes()


SAVE = """
import sys
from pathlib import Path
from clip_core.errors import UserError
from clip_core.model.weights import save_weights
from clip_core.train.optimizer import make_optimizer
from clip_core.train.average import Average
from clip_core.train.state import resume
from tests.tiny import MADE, saved, tiny_clip, tiny_training
small, model = Path(sys.argv[1]), tiny_clip()
optimizer = make_optimizer(model, tiny_training().optimizer)
saved(small, 1, 9, model, optimizer)
filler = small / "filler"
filler.write_bytes(bytes(2**18 - (small / "checkpoint-00000001.safetensors").stat().st_size - 2**15))
saved(small, 2, 9, model, optimizer)  # goes on
try:
    save_weights(model, "{}", small / "weights", MADE)
    sys.exit("saved onto a full disk")
except UserError as error:
    print(error)
print(*sorted(path.name for path in small.iterdir()), resume(small, model, optimizer, Average(model, None)))
"""


def test_a_disk_that_gets_full_leaves_the_checkpoint_before_and_says_what_to_do(tmp_path: Path) -> None:
    from tests.test_full_disk import on_a_disk_of  # needs packages that the GPU's machine lacks

    small = tmp_path / "small"
    checkpoint, weights, left = on_a_disk_of(2**18, small, SAVE, small)
    assert checkpoint.startswith("warning: no checkpoint after step 2:") and "the training goes on" in checkpoint
    for said, path in ((checkpoint, small / "checkpoint-00000002.safetensors"), (weights, small / "weights")):
        assert f"{path}: the disk is full" in said and "make room and run again" in said
    assert left == "checkpoint-00000001.safetensors filler 1"
