"""The order of the data: a function of (seed, epoch, block) that keeps false negatives apart."""

from itertools import pairwise

import numpy as np
import pytest

from clip_core.data import sampler
from clip_core.data.sampler import Epochs, arranged, blocks_of, random_at

KINDS = np.repeat(np.arange(40), 5)  # 40 kinds of five rows each


def batches_of_epoch(kinds: np.ndarray, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Of data in one block."""
    used, _, random = Epochs((len(kinds),), batch, seed).drawn(epoch, 0)
    return arranged(used, kinds, batch, random)


def test_an_epoch_is_a_permutation_without_the_rest() -> None:
    for batch in (1, 8, 30, 200):
        rows = batches_of_epoch(KINDS, batch, seed=1, epoch=0).ravel()
        assert len(rows) == len(KINDS) // batch * batch
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(range(len(KINDS)))


def test_no_kind_comes_twice_in_a_batch() -> None:
    for epoch in range(20):
        for batch in batches_of_epoch(KINDS, 30, seed=1, epoch=epoch):
            assert len(set(KINDS[batch])) == 30


def test_kinds_are_dealt_like_cards() -> None:
    """The oracle deals with lists; a sort that is not stable would deal otherwise on another processor."""
    random = random_at(1, "order", 3)
    rows, place = random.permutation(200).tolist()[:180], random.permutation(40)
    deck = sorted(rows, key=lambda row: place[KINDS[row]])
    hands = [deck[number::6] for number in range(6)]
    dealt = [hands[number] for number in random.permutation(6)]
    assert batches_of_epoch(KINDS, 30, seed=1, epoch=3).tolist() == dealt


def test_a_kind_of_too_many_rows_repeats_as_little_as_can_be() -> None:
    kinds = np.array([0] * 9 + list(range(1, 12)))  # nine of twenty rows, five batches
    counts = [int((kinds[batch] == 0).sum()) for batch in batches_of_epoch(kinds, 4, seed=1, epoch=0)]
    assert max(counts) <= 2


def test_the_same_seed_and_epoch_give_the_same_order_and_others_another() -> None:
    first = batches_of_epoch(KINDS, 30, seed=1, epoch=3)
    assert np.array_equal(first, batches_of_epoch(KINDS, 30, seed=1, epoch=3))
    assert not np.array_equal(first, batches_of_epoch(KINDS, 30, seed=1, epoch=4))
    assert not np.array_equal(first, batches_of_epoch(KINDS, 30, seed=2, epoch=3))


def test_what_an_epoch_leaves_out_changes_from_epoch_to_epoch() -> None:
    left_out = [set(range(200)) - set(batches_of_epoch(KINDS, 30, 1, epoch).ravel()) for epoch in range(2)]
    assert [len(rows) for rows in left_out] == [20, 20]
    assert left_out[0] != left_out[1]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "BLOCK_ROWS", 100)
    blocks_of.cache_clear()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("batch", [7, 64, 130])
@pytest.mark.parametrize("num_rows", [(40,) * 25, (99, 1, 0, 230, 5, 5, 30, 130), (250,)])
def test_every_row_is_used_once_an_epoch_by_its_block_or_the_next_but_for_the_last(
    num_rows: tuple[int, ...], batch: int
) -> None:
    epochs = Epochs(num_rows, batch, seed=1)
    for epoch in range(3):
        blocks, left = blocks_of(epochs, epoch), 0
        assert sorted(shard for block in blocks for shard in block.shards) == list(range(len(num_rows)))
        for number, block in enumerate(blocks):
            used, kept, _ = epochs.drawn(epoch, number)
            assert sorted([*used, *kept]) == list(range(sum(num_rows[shard] for shard in block.shards)))
            assert (left + len(used)) % batch == 0
            assert len(blocks) == 1 or len(used) + len(kept) >= batch
            left = len(kept)
        assert left == sum(num_rows) % batch


@pytest.mark.usefixtures("small_blocks")
def test_a_block_is_a_shard_or_no_more_rows_than_it_may_have() -> None:
    epochs = Epochs((40,) * 25 + (300,), 16, seed=1)
    blocks = blocks_of(epochs, 0)
    assert all(block.num_rows <= 100 or block.shards == [25] for block in blocks)
    assert sum(block.num_rows == 80 for block in blocks) >= 11
    assert [block.shards for block in blocks] != [block.shards for block in blocks_of(epochs, 1)]


@pytest.mark.usefixtures("small_blocks")
def test_steps_walk_through_epochs_blocks_and_their_batches() -> None:
    epochs = Epochs((40,) * 25, 64, seed=1)  # 15 batches an epoch
    places = [epochs.at(step) for step in range(1, 46)]
    assert [epoch for epoch, _, _ in places] == [0] * 15 + [1] * 15 + [2] * 15
    for (epoch, block, number), following in pairwise(places):
        assert following in ((epoch, block, number + 1), (epoch, block + 1, 0), (epoch + 1, 0, 0))


def test_every_purpose_and_step_draws_its_own_numbers() -> None:
    drawn = {
        random_at(seed, purpose, step).integers(2**62)
        for seed in (1, 2)
        for purpose in ("caption", "dropout")
        for step in (1, 2)
    }
    assert len(drawn) == 8
    assert random_at(1, "caption", 2).random() == random_at(1, "caption", 2).random()
    assert random_at(1, "order", 2).random() == random_at(1, "order", 2, 0).random() != random_at(1, "order", 2, 1)
