"""The loader: batches are the same for any number of workers and ranks, wherever one starts, whatever fails."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_core.config.loader import IN_PROCESS, Loader
from clip_core.config.training import AutoAugmentation, Training
from clip_core.data import batches as batches_module
from clip_core.data import loader
from clip_core.data.batches import Batch, TrainingBatches
from clip_core.data.loader import in_workers
from clip_core.data.pictures import AsNeeded, decoded
from clip_core.data.store import Store
from clip_core.image import Preprocessing, pixels_of, scaled_pixels_of
from clip_core.text import build_tokenizer, parse_tokenizer
from tests.conftest import ENVIRONMENT, ROOT
from tests.sentences import SIDE, jpeg, many, sentence_store
from tests.tiny import CHINESE, ENGLISH, IMAGE_SIZE, tiny_store, tiny_tokenizer_json, tiny_training

AUTO = AutoAugmentation(name="auto_augment", min_area=0.9, mirror=0.5)
BATCH = 24
WORN = "02-004"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return sentence_store(tmp_path_factory.mktemp("loader") / "made", many(4, 20), broken=[WORN])  # 156 pairs


def batches_of(store: Store, loader: Loader = IN_PROCESS, rank: int = 0, num_ranks: int = 1) -> TrainingBatches:
    params = tiny_training().model_copy(update={"global_batch": BATCH, "augmentation": AUTO})
    tokenizer = parse_tokenizer(build_tokenizer(pair["caption"] for shard in many(4, 20) for pair in shard), 32)
    pictures = AsNeeded(store, IMAGE_SIZE, Preprocessing(), "exact")
    return TrainingBatches(store, pictures, tokenizer, params, 1, loader, rank, num_ranks)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.token_ids, other.token_ids)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches_wherever_one_starts(
    workers: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "PART", 7)
    here = batches_of(store)
    with batches_of(store, Loader(workers=workers, prefetch=2)) as there:
        for step in (1, 2, 3, 9, 10, 5):
            assert same(there.batch(step), here.batch(step))
        assert there.broken.keys() == here.broken.keys()


@pytest.mark.parametrize("num_ranks", [2, 4, 5])
def test_the_ranks_batches_together_are_the_global_batch(num_ranks: int, store: Store) -> None:
    ranks = [batches_of(store, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    whole = batches_of(store)
    for step in range(1, 9):  # more than an epoch
        parts, wanted = [rank.batch(step) for rank in ranks], whole.batch(step)
        assert torch.equal(torch.cat([part.images for part in parts]), wanted.images)
        texts = [row[row != 0].tolist() for part in parts for row in part.token_ids]
        assert texts == [row[row != 0].tolist() for row in wanted.token_ids]


def test_a_rank_decodes_its_rows_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Store.image_bytes
    monkeypatch.setattr(Store, "image_bytes", lambda self, index: read.append(index) or real(self, index))
    batches_of(store, rank=1, num_ranks=4).batch(1)
    assert len(read) == BATCH // 4


def test_a_picture_that_fails_is_named_once_and_another_row_takes_its_place(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = batches_of(store)
    steps = [step for step in range(1, 19) if any(name.startswith(WORN) for name in batches.named(step))]
    assert len(steps) >= 4  # it has two pairs
    for step in steps:
        batch = batches.batch(step)
        worn = [place for place, name in enumerate(batches.named(step)) if name.startswith(WORN)]
        others = [tuple(map(int, row)) for i, row in enumerate(batch.token_ids) if i not in worn]
        for place in worn:
            assert batch.images[place].any()
            assert tuple(map(int, batch.token_ids[place])) not in others
    assert capsys.readouterr().out.count(f"picture {WORN}: broken picture") == 1
    assert list(batches.broken) == [WORN]


def test_when_nothing_can_be_decoded_the_training_says_so(tmp_path: Path) -> None:
    shards = many(1, 12)
    worn = sentence_store(tmp_path / "made", shards, broken=[pair["image_id"] for pair in shards[0]])
    with pytest.raises(ValueError, match="nor can the 100 after it be decoded"):
        batches_of(worn).batch(1)


# Taken from the code before there were blocks, parts and workers: rows with captions, token ids, pixels.
ORACLE = {
    "affine": ("1b90b5d2c69d5764", "aeacf0b643cb9bb9", "8eeb2fa3274836e5"),
    "another seed": ("4af65e8a85177891", "dd181c76d359437e", "9dd638cafec833e0"),
    "English": ("8d087bf787eff20a", "c94491505ed7d5e9", "8eeb2fa3274836e5"),
    "auto_augment": ("4da1ea2ae8ff37cc", "d5eb72e11f4a881b", "4db494c0b5196d26"),
}


def oracle_case(case: str) -> tuple[Training, int]:
    params = tiny_training(captions=ENGLISH if case == "English" else CHINESE)
    if case == "auto_augment":
        params = params.model_copy(update={"augmentation": AUTO, "global_batch": 10})
    return params, {"another seed": 2, "auto_augment": 3}.get(case, 1)


@pytest.mark.parametrize("case", ORACLE)
def test_data_of_one_block_keep_their_batches_to_the_bit(case: str, tmp_path: Path) -> None:
    store, (params, seed) = tiny_store(tmp_path / "store"), oracle_case(case)
    tokenizer = parse_tokenizer(tiny_tokenizer_json(store, params.captions), 16)
    batches = TrainingBatches(store, decoded(store, IMAGE_SIZE, Preprocessing()), tokenizer, params, seed)
    sums = [hashlib.sha256() for _ in range(3)]
    for step in (1, 2, 5, 7, 30):
        batch = batches.batch(step)
        found = "\n".join(batches.named(step)).encode(), batch.token_ids.numpy(), batch.images.numpy()
        for digest, data in zip(sums, found, strict=True):
            digest.update(data)
    assert tuple(digest.hexdigest()[:16] for digest in sums) == ORACLE[case]


def test_pictures_in_memory_need_no_workers_and_others_one_a_core() -> None:
    asked = Loader(workers=None, prefetch=2)
    assert loader.num_workers(asked, is_in_memory=True) == 0
    assert loader.num_workers(asked, is_in_memory=False) == len(os.sched_getaffinity(0))
    assert loader.num_workers(asked.model_copy(update={"workers": 5}), is_in_memory=True) == 5


def kill_itself(item: int) -> tuple[int]:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return (item,)


def who(item: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(10_000_000, dtype=torch.uint8), torch.tensor([os.getpid(), os.getppid()])


KILLED = """
import itertools, os, signal, sys
from pathlib import Path
from clip_core.data.loader import in_workers
from tests.test_loader import who
if __name__ == "__main__":
    results, found = in_workers(who, itertools.count(), 2, 2), []
    for _ in range(6):
        _, pids = next(results)
        found += pids.tolist()
    Path(sys.argv[1]).write_text(" ".join(map(str, found)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_training_that_is_killed_whatever_they_are_at(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "pids")]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = set(map(int, (tmp_path / "pids").read_text().split()))
    assert len(pids) == 3  # two workers, and what they are forked from
    until = time.monotonic() + 10
    while time.monotonic() < until and any(map(is_alive, pids)):
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def shared(item: int) -> tuple[torch.Tensor]:
    return (torch.ones(2**20 * item, dtype=torch.uint8),)


def test_a_worker_that_dies_is_told_with_what_helps() -> None:
    with pytest.raises(ValueError, match=r"DataLoader worker .* memory is short.*Lower `loader.workers`"):
        list(in_workers(kill_itself, range(9), 1, 1))


def test_shared_memory_that_is_full_is_told_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_core.data.loader.SHARED", tmp_path)
    monkeypatch.setattr("clip_core.data.loader._free", lambda: 2**20)
    with pytest.raises(ValueError, match=r"no room for 1\.0 MiB of pictures. Lower `loader.workers`.*--shm-size"):
        loader._Calls(shared)[1]


def test_scaled_decoding_changes_jpegs_a_little_and_others_not_at_all(store: Store) -> None:
    data = jpeg(5)
    exact, scaled = (decode(data, 24, Preprocessing()).astype(int) for decode in (pixels_of, scaled_pixels_of))
    assert 0 < np.abs(exact - scaled).mean() < 12
    for size in (SIDE, SIDE // 2 + 1):  # no scale fits
        assert np.array_equal(pixels_of(data, size, Preprocessing()), scaled_pixels_of(data, size, Preprocessing()))
    one, other = (AsNeeded(store, 24, Preprocessing(), decoding)(np.array([0])) for decoding in ("exact", "scaled"))
    assert not torch.equal(one, other)
