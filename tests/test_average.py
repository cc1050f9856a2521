"""The average of the weights over the steps: what it is, and that it is what is measured, published and resumed."""

from pathlib import Path

import pytest
import torch

from clip_core.data.batches import TrainingBatches
from clip_core.data.pictures import decoded
from clip_core.data.store import Store
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP
from clip_core.text import parse_tokenizer
from clip_core.train.average import Average
from clip_core.train.loop import train
from clip_core.train.watch import RECALL, Validation
from tests.tiny import IMAGE_SIZE, INTERVAL, tiny_clip, tiny_store, tiny_tokenizer_json, tiny_training


def test_the_average_is_the_one_written_out_and_gives_the_weights_back() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average, steps, expected = Average(model, 0.3), [2.0, -1.0, 5.0], float(model.weight)
    for step, value in enumerate(steps, 1):
        model.weight.data.fill_(value)
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        assert float(model.weight) == pytest.approx(expected)
    assert float(model.weight) == 5.0


def test_what_is_measured_and_published_is_the_average_of_the_weights_of_all_steps(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store")
    after = [weights_after(store, tmp_path, num, None)[0] for num in range(1, 7)]
    published, measured = weights_after(store, tmp_path, 6, 0.6)
    expected = {name: tensor.clone() for name, tensor in tiny_clip(tiny_tokenizer_json(store)).named_parameters()}
    for step, weights in enumerate(after, 1):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {name: decay * tensor + (1 - decay) * weights[name] for name, tensor in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(published[name], tensor)
    assert all(torch.equal(published[name], tensor) for name, tensor in measured.items())


def weights_after(store: Store, folder: Path, num: int, ema_decay: float | None) -> tuple[dict, dict]:
    """Those of a training of six steps that is seen after `num`, and those that its last validation saw."""
    params = tiny_training(num_steps=6).model_copy(update={"ema_decay": ema_decay})
    tokenizer_json, seen = tiny_tokenizer_json(store), {}
    model, pictures = tiny_clip(tokenizer_json), decoded(store, IMAGE_SIZE, Preprocessing())
    number = 0

    def look(measured: CLIP) -> dict[str, float]:
        nonlocal number
        if number == num:
            seen.update({name: tensor.detach().clone() for name, tensor in measured.state_dict().items()})
        number += 1
        return {RECALL: 0.5}

    work = folder / "tiny" / f"{num} {ema_decay}"
    work.mkdir(parents=True)
    with TrainingBatches(store, pictures, parse_tokenizer(tokenizer_json, 16), params, seed=1) as batches:
        train(batches, model, model.encode_images, work, INTERVAL, Validation(1, look))
    return (seen if num < 6 else model.state_dict()), seen
