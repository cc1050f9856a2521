"""The order of the data: a function of (seed, epoch) that keeps false negatives apart."""

import numpy as np
import pytest

from clip_core.data.sampler import batches_of_epoch, random_at

CONCEPTS = np.repeat(np.arange(40), 5)  # 40 concepts of five pictures each


def test_an_epoch_is_a_permutation_without_the_rest() -> None:
    for batch in (1, 8, 30, 200):
        rows = batches_of_epoch(CONCEPTS, batch, seed=1, epoch=0).ravel()
        assert len(rows) == len(CONCEPTS) // batch * batch
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(range(len(CONCEPTS)))


def test_no_concept_comes_twice_in_a_batch() -> None:
    for epoch in range(20):
        for batch in batches_of_epoch(CONCEPTS, 30, seed=1, epoch=epoch):
            assert len(set(CONCEPTS[batch])) == 30


def test_concepts_are_dealt_like_cards() -> None:
    """The oracle deals with lists; a sort that is not stable would deal otherwise on another processor."""
    random = random_at(1, "order", 3)
    pictures, place = random.permutation(200).tolist()[:180], random.permutation(40)
    deck = sorted(pictures, key=lambda picture: place[CONCEPTS[picture]])
    hands = [deck[number::6] for number in range(6)]
    dealt = [hands[number] for number in random.permutation(6)]
    assert batches_of_epoch(CONCEPTS, 30, seed=1, epoch=3).tolist() == dealt


def test_a_concept_of_too_many_pictures_repeats_as_little_as_can_be() -> None:
    concepts = np.array([0] * 9 + list(range(1, 12)))  # nine of twenty pictures, five batches
    counts = [int((concepts[batch] == 0).sum()) for batch in batches_of_epoch(concepts, 4, seed=1, epoch=0)]
    assert max(counts) <= 2


def test_the_same_seed_and_epoch_give_the_same_order_and_others_another() -> None:
    first = batches_of_epoch(CONCEPTS, 30, seed=1, epoch=3)
    assert np.array_equal(first, batches_of_epoch(CONCEPTS, 30, seed=1, epoch=3))
    assert not np.array_equal(first, batches_of_epoch(CONCEPTS, 30, seed=1, epoch=4))
    assert not np.array_equal(first, batches_of_epoch(CONCEPTS, 30, seed=2, epoch=3))


def test_what_an_epoch_leaves_out_changes_from_epoch_to_epoch() -> None:
    left_out = [set(range(200)) - set(batches_of_epoch(CONCEPTS, 30, 1, epoch).ravel()) for epoch in range(2)]
    assert [len(rows) for rows in left_out] == [20, 20]
    assert left_out[0] != left_out[1]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch is 201, but there are only 200 training pictures"):
        batches_of_epoch(CONCEPTS, 201, seed=1, epoch=0)


def test_every_purpose_and_step_draws_its_own_numbers() -> None:
    drawn = {
        random_at(seed, purpose, step).integers(2**62)
        for seed in (1, 2)
        for purpose in ("caption", "dropout")
        for step in (1, 2)
    }
    assert len(drawn) == 8
    assert random_at(1, "caption", 2).random() == random_at(1, "caption", 2).random()
