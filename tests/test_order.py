"""The rows of each step: every pair once an epoch, what must not meet apart, from one block in memory."""

from collections import Counter
from pathlib import Path

import pytest

from clip_core.data import sampler
from clip_core.data.order import Order
from clip_core.data.store import Store
from tests.sentences import many, row, sentence_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return sentence_store(tmp_path_factory.mktemp("order") / "made", many(8, 30))  # 8 shards of 60 pairs


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "BLOCK_ROWS", 130)
    sampler.blocks_of.cache_clear()


def test_each_pair_comes_once_an_epoch_but_for_less_than_a_batch(store: Store) -> None:
    rows = Order(store, "zh", batch=13, seed=1)
    for epoch in range(3):
        steps = range(epoch * 36 + 1, epoch * 36 + 37)
        pairs = Counter((row.image, row.caption) for step in steps for row in rows.rows(step))
        assert set(pairs.values()) == {1}
        assert len(pairs) == 36 * 13 == 480 // 13 * 13


def test_a_steps_rows_depend_on_the_step_alone(store: Store) -> None:
    one = Order(store, "zh", batch=13, seed=1)
    forwards = [one.rows(step) for step in range(1, 80)]
    for step in (79, 3, 40, 12):
        assert Order(store, "zh", batch=13, seed=1).rows(step) == one.rows(step) == forwards[step - 1]
    assert Order(store, "zh", batch=13, seed=2).rows(3) != forwards[2]


def test_pairs_of_a_picture_never_meet(store: Store) -> None:
    rows = Order(store, "zh", batch=13, seed=1)
    for step in range(1, 73):
        images = [row.image for row in rows.rows(step)]
        assert len(set(images)) == len(images)


def test_a_caption_that_many_share_is_spread_evenly(tmp_path: Path) -> None:
    shared = [[row(f"{i:03}", 0, "连衣裙" if i % 3 == 0 else f"第{i}条") for i in range(60)]]
    rows = Order(sentence_store(tmp_path / "made", shared), "zh", batch=6, seed=1)
    counts = [sum(row.caption == "连衣裙" for row in rows.rows(step)) for step in range(1, 11)]
    assert counts == [2] * 10


def test_a_block_and_what_the_one_before_left_is_all_that_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = Store.pairs_of

    def noted(self: Store, shards: list[int], columns: tuple[str, ...]) -> object:
        asked.append(len(shards))
        return real(self, shards, columns)

    rows = Order(store, "zh", batch=13, seed=1)
    monkeypatch.setattr(Store, "pairs_of", noted)
    for step in range(1, 37):
        rows.rows(step)
    assert max(asked) == 2  # shards of a block
    assert len(asked) == 7  # four blocks, and thrice the one before
    loaded = rows._loaded
    assert loaded is not None and len(loaded[1]) < 130 + 13
