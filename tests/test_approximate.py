"""Approximate search: what FAISS finds, scored exactly, gated by its recall of texts, and served."""

from pathlib import Path

import numpy as np
import pytest

from clip_core.config.index import Index
from clip_core.errors import UserError
from clip_core.inference.nearest import top_k
from clip_core.serve.approximate import FILE, Approximate, Kind, build
from clip_core.serve.assemble import Gallery, assemble
from clip_core.serve.gallery import TRITON
from clip_core.serve.golden import probe, read_golden
from clip_core.serve.index import build_index, read_index, recall_of
from clip_core.serve.queries import search
from tests.tiny_release import TOP_K, Release, triton_of

KINDS = ("hnsw", "ivf_pq")


@pytest.fixture(scope="module")
def seen() -> tuple[np.ndarray, np.ndarray]:
    """2,000 pictures in 200 bunches, and 100 texts, which lie apart from all pictures as a CLIP's do."""
    draw = np.random.default_rng(3)
    centres = draw.normal(size=(200, 64))
    pictures = centres[draw.integers(200, size=2000)] + 0.5 * draw.normal(size=(2000, 64))
    texts = centres[draw.integers(200, size=100)] + 0.7 * draw.normal(size=(100, 64)) + 2 * draw.normal(size=64)
    return tuple((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (pictures, texts))


@pytest.mark.parametrize("kind", KINDS)
def test_nearly_all_of_the_exact_top_ten_is_found_with_exact_scores(
    kind: Kind, seen: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    pictures, texts = seen
    build(kind, pictures, tmp_path / "one")
    places, scores = Approximate(tmp_path / "one", pictures).top_k(texts, 10)
    assert recall_of(pictures, texts, places) >= 0.95
    np.testing.assert_allclose(scores, np.take_along_axis(texts @ pictures.T, places, axis=1), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len({*row}) == 10 for row in places.tolist())

    build(kind, pictures, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_asked_for_everything_it_finds_everything(kind: Kind, tmp_path: Path) -> None:
    pictures = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    build(kind, pictures, tmp_path / "index")
    places, _ = Approximate(tmp_path / "index", pictures).top_k(pictures[:3], 300)
    np.testing.assert_array_equal(np.sort(places), [range(300)] * 3)


def test_of_equal_pictures_the_first_is_found_first(tmp_path: Path) -> None:
    pictures = np.repeat(np.eye(8, dtype=np.float32), 40, axis=0)
    build("hnsw", pictures, tmp_path / "index")
    found, _ = Approximate(tmp_path / "index", pictures).top_k(pictures[:1], 40)
    np.testing.assert_array_equal(found, top_k(pictures, pictures[:1], 40)[0])


def test_codes_that_so_few_pictures_can_not_teach_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index.kind: ivf_pq is for 256 pictures or more .*, not 40 and 8"):
        build("ivf_pq", np.eye(40, 8, dtype=np.float32), tmp_path / "index")


def test_an_index_of_other_features_is_refused(tmp_path: Path) -> None:
    build("hnsw", np.eye(40, 8, dtype=np.float32), tmp_path / "index")
    with pytest.raises(UserError, match="of 40 pictures, but there are 41 features"):
        Approximate(tmp_path / "index", np.eye(41, 8, dtype=np.float32))


def test_a_release_with_an_approximate_index_is_proved_and_served(release: Release, tmp_path: Path) -> None:
    index, made = tmp_path / "index", tmp_path / "release"
    params = Index(kind="hnsw", top_k=TOP_K, min_recall=0.9, metadata=("family", "source"))
    recall = build_index(release.onnx, release.store, list(release.truth.texts), params, index)
    assert (index / FILE).exists() and read_index(index).recall == recall >= 0.9
    made.mkdir()
    galleries = {"test": Gallery(release.store.folder, index)}
    release_id = assemble(release.onnx, galleries, release.golden, TOP_K, TRITON, made)
    assert read_golden(made / "golden").approximate == {"test": recall}
    with triton_of(release._replace(folder=made, id=release_id), folder=tmp_path / "served") as triton:
        probe(triton.client, read_golden(made / "golden"), release_id)
        texts = release.truth.texts[:20]
        found = [set(one.ids) for one in search(triton.client, texts)]
        places, _ = top_k(release.truth.image_features, release.truth.text_features[:20], TOP_K)
        true = [{release.store.image_ids[place] for place in row} for row in places]
        assert np.mean([len(some & others) / TOP_K for some, others in zip(found, true, strict=True)]) >= 0.9
