"""The index: exact search over the gallery, a gate on its recall, and what searches may be filtered by."""

import json
from pathlib import Path

import numpy as np
import pytest

from clip_core.config.index import Index
from clip_core.errors import UserError
from clip_core.inference.nearest import top_k
from clip_core.model.contract import weights_id
from clip_core.serve.index import build_index, read_index, read_metadata, recall_of
from tests.tiny_release import TOP_K, Release


def test_the_best_are_those_of_a_full_sort() -> None:
    draw = np.random.default_rng(5)
    features, queries = (draw.normal(size=(rows, 16)).astype(np.float32) for rows in (200, 30))
    places, scores = top_k(features, queries, 7)
    all_scores = queries @ features.T
    np.testing.assert_array_equal(places, np.argsort(-all_scores, axis=1, kind="stable")[:, :7])
    np.testing.assert_array_equal(scores, np.take_along_axis(all_scores, places, axis=1))


def test_equal_pictures_are_found_in_the_order_of_the_index() -> None:
    features = np.array([[0.0, 1], [1, 0], [1, 0], [1, 0], [0, 1]])
    places, _ = top_k(features, np.array([[1.0, 0]]), 2)
    assert places.tolist() == [[1, 2]]


def test_a_gallery_smaller_than_k_is_found_whole() -> None:
    places, _ = top_k(np.eye(3), np.array([[0.1, 0.3, 0.2]]), 10)
    assert places.tolist() == [[1, 2, 0]]


def test_recall_is_the_share_of_the_full_sort_in_float64_that_a_search_in_float32_finds() -> None:
    steps = np.random.default_rng(5).permutation(64) * 1e-5
    features = np.stack([np.full(64, 4000.0), steps], axis=1).astype(np.float32)  # at 4000 float32 goes by 2e-4
    queries = np.array([[1, 1], [1, -1], [0, 1]], dtype=np.float32)  # the last one sees the small steps alone
    scores = queries.astype(np.float64) @ features.astype(np.float64).T
    best = np.argsort(-scores, axis=1)[:, :10]
    shares = [len({*found} & {*true}) / 10 for found, true in zip(top_k(features, queries, 10)[0], best, strict=True)]
    assert max(shares[:2]) < shares[2] == 1
    assert recall_of(features, queries, top_k(features, queries, 10)[0]) == pytest.approx(np.mean(shares))


def test_of_equal_pictures_each_is_right() -> None:
    features = np.array([[1.0, 0]] * 15 + [[0.0, 1]] * 15, dtype=np.float32)
    assert recall_of(features, features[[0, 20]], top_k(features, features[[0, 20]], 10)[0]) == 1.0


def test_the_index_holds_the_features_of_the_export(release: Release) -> None:
    index = read_index(release.index)
    assert index.image_ids == release.store.image_ids
    assert index.weights_id == weights_id(release.onnx)
    np.testing.assert_allclose(index.features, release.truth.image_features, atol=1e-5)
    assert json.loads((release.index / "index.json").read_text())["recall"] == 1.0


def test_an_index_below_the_gate_is_not_written(release: Release, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"finds 1.0000 of the true top 10; index.min_recall: 1.1"):
        params = Index.model_construct(kind="exact", top_k=TOP_K, min_recall=1.1, metadata=())
        build_index(release.onnx, release.store, list(release.truth.texts), params, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_an_index_whose_parts_do_not_fit_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.zeros((3, 2)))
    (tmp_path / "image_ids.json").write_text('["a", "b"]')
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"weights_id": "r"}')
    with pytest.raises(ValueError, match=r"index\.json has no 'recall': make the index again"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"weights_id": "r", "recall": 1.0}')
    with pytest.raises(ValueError, match="3 rows of features for 2 image ids"):
        read_index(tmp_path)


def test_the_metadata_are_the_columns_of_the_pair_table_picture_by_picture(release: Release) -> None:
    assert read_metadata(release.index) == {
        "family": [image_id.split("-")[1] for image_id in release.store.image_ids],
        "source": ["test"] * len(release.store),
    }


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("colour", "index.metadata: colour: the pair table has pair_id, image_id"),
        ("caption", "index.metadata: caption: several values for the picture"),
    ],
)
def test_a_column_that_says_nothing_of_a_picture_is_refused(
    column: str, said: str, release: Release, tmp_path: Path
) -> None:
    params = Index(kind="exact", top_k=TOP_K, min_recall=1.0, metadata=(column,))
    with pytest.raises(UserError, match=said):
        build_index(release.onnx, release.store, list(release.truth.texts), params, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []
