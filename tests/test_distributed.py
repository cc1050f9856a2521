"""Several ranks train one model: the same global batch, the same weights as one process to float tolerance."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_core.errors import UserError
from clip_core.model.clip import make_clip
from clip_core.model.weights import save_weights
from clip_core.train import distributed
from clip_core.train.distributed import process_group
from tests.conftest import ENVIRONMENT, ROOT
from tests.ranks import CASES, WEIGHTS
from tests.tiny import ENGLISH, MADE, tiny_architecture, tiny_clip, tiny_store, tiny_tokenizer_json

ON_FOUR = ("plain", "gradient caching, averaged", "stage 1", "kin", "sharded")
Weights = dict[tuple[str, int], dict[str, Tensor]]  # case, number of ranks -> the model after its training


def on_ranks(num: int, *arguments: object) -> subprocess.CompletedProcess:
    """`python -m tests.ranks` as `torchrun` starts it by hand, or alone."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)] if num > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.ranks", *map(str, arguments)]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    tokenizer_json = tiny_tokenizer_json(tiny_store(folder / "store"), ENGLISH)
    wider = tiny_architecture(tokenizer_json).model_copy(update={"embed_dim": 12})
    save_weights(make_clip(wider, 2), tokenizer_json, folder / "teacher", MADE)
    return folder


@pytest.fixture(scope="module")
def weights(folder: Path) -> Weights:
    """All cases, each number of ranks started once."""
    found: Weights = {}
    for num, names in ((1, ("start", *CASES)), (2, tuple(CASES)), (4, ON_FOUR)):
        result = on_ranks(num, folder, *names)
        assert result.returncode == 0, result.stdout + result.stderr
        found |= {(name, num): load_file(folder / f"{name} on {num}" / "run" / WEIGHTS) for name in names}
    return found


@pytest.mark.parametrize(("name", "num"), [*((name, 2) for name in CASES), *((name, 4) for name in ON_FOUR)])
def test_the_same_global_batch_trains_like_one_process(name: str, num: int, weights: Weights) -> None:
    one, many, start = weights[name, 1], weights[name, num], weights["start", 1]
    assert one.keys() == many.keys()
    moved = max(float((one[key] - start[key]).abs().max()) for key in start if key in one)
    assert moved > 0.01
    apart = max(float((many[key] - one[key]).abs().max()) for key in one)
    assert apart < 0.002 * moved


def test_ranks_that_would_train_something_else_refuse_to_start(folder: Path) -> None:
    result = on_ranks(2, folder, "disagree")
    assert result.returncode == 1
    assert "error: rank 1 would train something else than rank 0: other params, data, code or packages" in result.stderr


def test_a_rank_that_falls_silent_without_a_word_is_named_and_all_stop(folder: Path) -> None:
    result = on_ranks(2, folder, "fall silent")
    assert result.returncode == 1
    assert "error: rank 1 has not been heard of for 4 s: is it stopped, or its host cut off?" in result.stderr


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "two"}, "RANK is 'two', not a number: start the ranks with torchrun"),
        ({"RANK": "0"}, "WORLD_SIZE is '', not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2: ranks are 0 to 1"),
    ],
)
def test_a_wrong_rank_is_named_before_anything_long(
    environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told), process_group():
        pass


def test_a_tower_whose_statistics_can_not_be_those_of_all_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    monkeypatch.setattr(distributed, "pick_device", lambda _: torch.device("cpu"))
    with pytest.raises(UserError, match=r"normalises over the batch, .* set `train.devices` to 1"):
        distributed.spread(tiny_clip(), is_sharded=False)
