"""Recall, ranks and chance levels against slow and obvious versions of themselves."""

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clip_core.evaluate import retrieval
from clip_core.evaluate.benchmark import questions, read_benchmark
from clip_core.evaluate.retrieval import (
    chance_at,
    map_at_r,
    map_chance,
    median_rank_by_chance,
    quick_recall,
    ranks,
    recall_at,
    retrieve,
)
from clip_core.inference import nearest
from tests.tiny_split import make_split


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def full_sort_rank(query: np.ndarray, candidates: np.ndarray, right: Sequence[int]) -> int:
    """All candidates sorted by score, the wrong ones first among equals; then counted from the top."""
    order = sorted(range(len(candidates)), key=lambda i: (-float(query @ candidates[i]), i in right))
    return 1 + min(order.index(i) for i in right)


@pytest.mark.parametrize("sizes", [(5, 4), (7, 9), (1024, 4096)])
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # numpy, and torch as on a GPU
def test_chunked_ranks_equal_the_full_sort(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], device: str
) -> None:
    monkeypatch.setattr(nearest, "QUERIES_AT_ONCE", sizes[0])
    monkeypatch.setattr(nearest, "CANDIDATES_AT_ONCE", sizes[1])
    rng = np.random.default_rng(1)
    queries, candidates = unit(40, 8, seed=2), unit(57, 8, seed=3)
    relevant = [sorted(rng.choice(57, size=rng.integers(1, 6), replace=False).tolist()) for _ in queries]
    expected = [full_sort_rank(q, candidates, right) for q, right in zip(queries, relevant, strict=True)]
    assert retrieve(queries, candidates, relevant, 10, device).ranks.tolist() == expected


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("k", [1, 10, 70, 700])
@pytest.mark.parametrize("most", [2**22, 1])
def test_the_best_of_all_blocks_are_those_of_a_full_sort(
    monkeypatch: pytest.MonkeyPatch, device: str, k: int, most: int
) -> None:
    monkeypatch.setattr(nearest, "CANDIDATES_AT_ONCE", 300)
    monkeypatch.setattr(nearest, "MAX_FOUND", most)
    rng = np.random.default_rng(13)
    candidates = rng.integers(-2, 3, size=(1000, 4)).astype(np.float32)  # most scores are there many times
    queries = rng.integers(-2, 3, size=(50, 4)).astype(np.float32)
    places, scores = nearest.top_k(candidates, queries, k, device=device)
    true = queries @ candidates.T
    np.testing.assert_array_equal(places, np.argsort(-true, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(scores, np.take_along_axis(true, places, axis=1))


def test_memory_is_that_of_a_block_and_not_of_all_scores() -> None:
    """The products of 3,000 queries and 30,000 candidates would take 343 MiB."""
    queries, candidates = unit(3000, 8, seed=14), unit(30_000, 8, seed=15)
    tracemalloc.start()
    retrieve(queries, candidates, np.arange(3000)[:, None], 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20


def test_a_tie_never_counts_in_favour_of_the_truth() -> None:
    query = np.ones((1, 1), dtype=np.float32)
    equal = np.ones((4, 1), dtype=np.float32)
    for place in range(4):
        assert ranks(query, equal, [[place]]).tolist() == [4]
    assert ranks(query, equal, [[0, 1, 2, 3]]).tolist() == [1]


def test_a_wrong_candidate_that_is_as_far_behind_as_a_tie_allows_stands_first_in_the_list_as_in_the_ranks() -> None:
    candidates = np.array([[0.5], [0.5]], dtype=np.float32)
    candidates[1] -= retrieval.TIE
    found = retrieve(np.ones((1, 1), dtype=np.float32), candidates, [[0]], k=2)
    assert (found.ranks.tolist(), found.places.tolist()) == ([2], [[1, 0]])


def test_constant_features_score_zero_however_the_sums_are_rounded() -> None:
    one = unit(1, 129, seed=4)
    queries, candidates = np.repeat(one, 33, axis=0), np.repeat(one, 1537, axis=0)
    found = ranks(queries, candidates, [[i] for i in range(33)])
    assert found.tolist() == [1537] * 33


def test_any_of_several_right_answers_counts() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6]], dtype=np.float32)
    assert ranks(scores, np.eye(4, dtype=np.float32), [[3, 1]]).tolist() == [2]


def test_recall_is_one_when_there_are_fewer_candidates_than_k() -> None:
    found = ranks(unit(5, 4, seed=5), unit(3, 4, seed=6), [[0], [1], [2], [0], [1]])
    assert recall_at(found, 10) == 1.0


def test_broken_features_and_unanswerable_queries_are_refused() -> None:
    features = unit(2, 4, seed=7)
    with pytest.raises(ValueError, match="NaN or infinity"):
        ranks(np.full((1, 4), np.nan, dtype=np.float32), features, [[0]])
    for many in (100, 2**16 + 1):  # which are looked at in pieces
        last = unit(many, 4, seed=7)
        last[-1, -1] = np.inf
        with pytest.raises(ValueError, match="NaN or infinity"):
            ranks(features, last, [[0], [0]])
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        ranks(features, features, [[0], []])


def test_the_top_ten_agrees_with_the_ranks() -> None:
    rng = np.random.default_rng(8)
    queries, candidates = unit(30, 4, seed=9), unit(25, 4, seed=10)[rng.integers(0, 25, 60)]  # many exact ties
    relevant = [rng.choice(60, size=2, replace=False) for _ in queries]
    found = retrieve(queries, candidates, relevant, k=10)
    for row, is_right, right, rank in zip(found.places, found.is_right, relevant, found.ranks, strict=True):
        np.testing.assert_array_equal(is_right, np.isin(row, right))
        hits = np.flatnonzero(is_right)
        assert (hits[0] + 1 == rank) if rank <= 10 else len(hits) == 0
    assert (np.diff(found.scores) <= retrieval.TIE).all()
    true = np.take_along_axis(queries @ candidates.T, found.places, axis=1)
    np.testing.assert_allclose(found.scores, true, atol=2e-7)


def test_queries_whose_truth_is_level_with_a_wrong_candidate_are_counted() -> None:
    candidates = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    queries = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    found = retrieve(queries, candidates, [[0], [2], [0, 1]], 0)
    assert (found.is_tied.tolist(), found.ranks.tolist()) == ([True, False, False], [2, 1, 1])
    assert found.places.shape == (3, 0)


def slow_map_at_r(query: np.ndarray, candidates: np.ndarray, right: Sequence[int]) -> float:
    order = sorted(range(len(candidates)), key=lambda i: (-float(query @ candidates[i]), i in right))[: len(right)]
    precisions = [sum(i in right for i in order[: n + 1]) / (n + 1) for n, i in enumerate(order) if order[n] in right]
    return sum(precisions) / len(right)


def test_map_at_r_equals_its_definition() -> None:
    rng = np.random.default_rng(16)
    queries, candidates = unit(40, 4, seed=17), unit(30, 4, seed=18)
    relevant = [rng.choice(30, size=rng.integers(1, 9), replace=False) for _ in queries]
    expected = [slow_map_at_r(q, candidates, right.tolist()) for q, right in zip(queries, relevant, strict=True)]
    found = retrieve(queries, candidates, relevant, 8)
    np.testing.assert_allclose(map_at_r(found.is_right, [len(right) for right in relevant]), expected)


def test_the_chance_of_map_at_r_is_what_random_orders_score() -> None:
    rng, num_right = np.random.default_rng(19), np.array([1, 2, 7])
    is_right = np.array([[rng.permutation(20) < n for n in num_right] for _ in range(20_000)])
    scored = np.mean([map_at_r(rows, num_right) for rows in is_right])
    assert map_chance(num_right, 20) == pytest.approx(scored, abs=0.005)
    assert (map_chance([1], 50), map_chance([3], 3)) == (1 / 50, 1)


def test_chance_is_what_random_orders_score() -> None:
    rng = np.random.default_rng(11)
    num_right = [1, 1, 3, 7]
    orders = np.array([[rng.permutation(20)[:n].min() for n in num_right] for _ in range(20_000)])
    for k in (1, 5, 10):
        assert chance_at(num_right, 20, k) == pytest.approx((orders < k).mean(), abs=0.01)
    assert chance_at([1], 1000, 5) == pytest.approx(0.005)
    assert chance_at([1, 2], 4, 10) == 1.0


def test_the_median_rank_by_chance_is_where_chance_passes_one_half() -> None:
    for num_right, num in (([1], 1), ([1], 2), ([1, 1, 3], 20), ([2, 7], 9), ([5], 1000)):
        rank = median_rank_by_chance(num_right, num)
        assert chance_at(num_right, num, rank) >= 0.5 - 1e-9
        assert rank == 1 or chance_at(num_right, num, rank - 1) < 0.5
    assert median_rank_by_chance([1], 10**6) == 500_000
    assert median_rank_by_chance([10, 1, 1], 10) == 3  # a third is sure to be found, of the rest three tenths are


def test_seen_queries_search_seen_pictures_and_all_queries_all_pictures(tmp_path: Path) -> None:
    store = make_split(
        tmp_path / "test", [("a-1", "猫", True, "动物"), ("a-2", "狗", True, "动物"), ("a-3", "钟", False, "物品")]
    )
    benchmark = read_benchmark(store)
    sizes = {g: (len(questions(benchmark, g).texts), len(questions(benchmark, g).images)) for g in ("seen", "all")}
    assert sizes == {"seen": (2, 2), "all": (3, 3)}
    unseen = questions(benchmark, "unseen")
    assert [benchmark.texts[i] for i in unseen.texts] == ["钟"]
    assert [benchmark.image_ids[i] for i in unseen.images] == ["a-3"]


def test_pictures_with_the_same_text_are_all_right_and_asked_once(tmp_path: Path) -> None:
    store = make_split(
        tmp_path / "test", [("b", "猫", True, "动物"), ("a", "猫", True, "动物"), ("c", "狗", True, "动物")]
    )
    benchmark = read_benchmark(store)
    asked = questions(benchmark, "all")
    by_text = {
        benchmark.texts[t]: [benchmark.image_ids[i] for i in right]
        for t, right in zip(asked.texts, asked.right_images, strict=True)
    }
    assert by_text == {"猫": ["a", "b"], "狗": ["c"]}
    assert [len(right) for right in asked.right_texts] == [1, 1, 1]


def test_equal_texts_of_two_ids_are_two_queries_each_with_its_own_pictures(tmp_path: Path) -> None:
    store = make_split(tmp_path / "test", [(name, "猫", True, None) for name in "ab"])
    store.pairs["text_id"] = ["8", "7"]
    benchmark = read_benchmark(store)
    assert (benchmark.texts, benchmark.text_ids) == (["猫", "猫"], ["7", "8"])
    assert [right.tolist() for right in questions(benchmark, "all").right_images] == [[1], [0]]


def test_a_picture_without_text_and_a_text_without_picture_are_candidates_that_ask_nothing(tmp_path: Path) -> None:
    rows = [("b", "猫", True, "动物"), ("a", None, True, None), (None, "云", True, None), (None, "钟", False, None)]
    benchmark = read_benchmark(make_split(tmp_path / "test", rows))
    asked = {group: questions(benchmark, group) for group in ("seen", "unseen", "all")}
    names = {group: [benchmark.texts[i] for i in found.texts] for group, found in asked.items()}
    assert names == {"seen": ["云", "猫"], "unseen": ["钟"], "all": ["云", "猫", "钟"]}
    for group in ("seen", "all"):
        assert [benchmark.image_ids[i] for i in asked[group].images] == ["a", "b"]
        assert [benchmark.texts[i] for i in asked[group].asking_texts] == ["猫"]
        assert [benchmark.image_ids[i] for i in asked[group].asking_images] == ["b"]
        assert [right.tolist() for right in asked[group].right_images + asked[group].right_texts] == [[1], [1]]
    assert len(asked["unseen"].asking_texts) == 0


def test_an_unseen_word_is_asked_for_exactly_the_pictures_that_carry_it_among_all_and_in_no_other_group(
    tmp_path: Path,
) -> None:
    rows = [("c", "猫", True, "动物"), ("a", "狗", True, "动物"), ("b", "钟", False, "物品"), ("d", "云", True, None)]
    rows += [("c", "毛", True, "动物"), ("a", "毛", True, "动物"), ("a", "响", True, None), ("b", "响", False, "物品")]
    benchmark = read_benchmark(make_split(tmp_path / "test", rows, words="毛响"))
    names = {g: {benchmark.texts[i] for i in questions(benchmark, g).texts} for g in ("seen", "unseen", "all")}
    assert names == {"seen": {"猫", "狗", "云"}, "unseen": {"钟"}, "all": {"猫", "狗", "钟", "云"}}
    asked = questions(benchmark, "unseen_words")
    assert [benchmark.image_ids[i] for i in asked.images] == ["a", "b", "c", "d"]
    assert [benchmark.texts[i] for i in asked.asking_texts] == ["响", "毛"]
    assert [[benchmark.image_ids[i] for i in right] for right in asked.right_images] == [["a", "b"], ["a", "c"]]
    assert [benchmark.image_ids[i] for i in asked.asking_images] == ["a", "b", "c"]
    assert [[benchmark.texts[asked.texts[i]] for i in right] for right in asked.right_texts] == [
        ["响", "毛"],
        ["响"],
        ["毛"],
    ]


def test_a_split_whose_texts_have_no_picture_has_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing to ask"):
        read_benchmark(make_split(tmp_path / "test", [("a", None, True, None), (None, "猫", True, None)]))


def test_a_source_without_unseen_concepts_has_no_unseen_questions(tmp_path: Path) -> None:
    benchmark = read_benchmark(make_split(tmp_path / "test", [("a", "猫", True, "动物")]))
    unseen = questions(benchmark, "unseen")
    assert (len(unseen.asking_texts), len(unseen.images), unseen.right_images, unseen.right_texts) == (0, 0, [], [])


def test_quick_recall_asks_the_seen_names_only(tmp_path: Path) -> None:
    names = ["猫", "狗", "钟", "心"]
    store = make_split(tmp_path / "test", [(f"a-{i}", name, i < 3, "物品") for i, name in enumerate(names)])
    eye = np.eye(4, dtype=np.float32)
    answer = quick_recall(
        lambda texts: eye[[names.index(text) for text in texts]],
        lambda images: eye[images],
        store,
    )
    assert answer == {"text_to_image_mean_recall": 1.0}


def test_quick_recall_of_a_width_is_that_of_the_first_numbers_made_unit_again(tmp_path: Path) -> None:
    store = make_split(tmp_path / "test", [("a", "猫", True, "物品"), ("b", "狗", True, "物品")])
    texts = np.array([[0.8, 0.0, -0.6], [0.8, 0.6, 0.0]], dtype=np.float32)
    images = np.array([[0.6, 0.0, 0.8], [0.8, 0.6, 0.0]], dtype=np.float32)
    answer = quick_recall(
        lambda names: texts[["猫狗".index(name) for name in names]],
        lambda places: images[places],
        store,
        widths=[2],
    )
    # The cat finds the dog first, also by two numbers as they are (0.48 and 0.64), but not by those made unit (1, 0.8).
    assert answer == pytest.approx({"text_to_image_mean_recall": 5 / 6, "text_to_image_mean_recall_width_2": 1.0})
