"""Search by a Milvus server: a real milvus-lite on loopback finds what exact search finds."""

import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx
import numpy as np
import pytest

from clip_core.config.index import Index
from clip_core.errors import UserError
from clip_core.guard import free_port
from clip_core.inference.nearest import top_k
from clip_core.serve import releases
from clip_core.serve.assemble import Gallery, assemble
from clip_core.serve.gallery import TRITON
from clip_core.serve.golden import probe, read_golden
from clip_core.serve.index import build_index, read_index, read_metadata
from clip_core.serve.milvus import ADDRESS, FILE, Milvus, collection_in
from clip_core.serve.pictures import INDEXES
from clip_core.serve.queries import search
from clip_core.serve.release import seal
from clip_core.serve.triton import Server
from tests.page_server import Supervised, page_of
from tests.tiny_release import TOP_K, Release, triton_of

pymilvus = pytest.importorskip("pymilvus", reason="no package pymilvus")
PARAMS = Index(kind="milvus", top_k=TOP_K, min_recall=0.95, metadata=("family", "source"))


@pytest.fixture(scope="module", autouse=True)
def client(tmp_path_factory: pytest.TempPathFactory) -> Generator["pymilvus.MilvusClient"]:
    """Of a server that CLIP_MILVUS names."""
    data, port = tmp_path_factory.mktemp("milvus"), free_port()
    where = ["--data-dir", str(data), "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-u", "-m", "milvus_lite", "server", *where]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and "listening" in process.stdout.readline()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ADDRESS, f"http://127.0.0.1:{port}")
            yield pymilvus.MilvusClient(f"http://127.0.0.1:{port}", timeout=30)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def index(release: Release, client: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the tiny release, searched by Milvus. Read only."""
    folder = tmp_path_factory.mktemp("index") / "index"
    assert build_index(release.onnx, release.store, list(release.truth.texts), PARAMS, folder) == 1.0
    return folder


def test_it_finds_the_exact_top_ten_with_exact_scores_and_with_a_filter(index: Path, release: Release) -> None:
    found, metadata = read_index(index), read_metadata(index)
    assert isinstance(found.approximate, Milvus)
    queries = release.truth.text_features
    places, scores = found.top_k(queries, TOP_K)
    np.testing.assert_allclose(scores, top_k(found.features, queries, TOP_K)[1], atol=1e-6)
    np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, found.features[places]), scores, atol=1e-6)
    is_red = np.array([family == "red" for family in metadata["family"]])
    places, scores = found.approximate.top_k(queries, TOP_K, {"family": "red", "source": "test"})
    num_red = int(is_red.sum())
    assert num_red < TOP_K and is_red[places[:, :num_red]].all() and (places[:, num_red:] == -1).all()
    np.testing.assert_allclose(scores[:, :num_red], top_k(found.features[is_red], queries, TOP_K)[1], atol=1e-6)


def test_v1_filters_and_pages_by_it(index: Path, release: Release, triton: Server, tmp_path: Path) -> None:
    place = tmp_path / release.id / INDEXES / "test"
    place.parent.mkdir(parents=True)
    place.symlink_to(index)
    (tmp_path / release.id / "galleries").symlink_to(release.folder / "galleries")
    exact = tmp_path / "exact" / release.id
    exact.parent.mkdir()
    exact.symlink_to(release.folder)
    with (
        page_of(Supervised(triton.address), tmp_path) as api,
        page_of(Supervised(triton.address), exact.parent) as peer,
    ):
        for wanted in ({}, {"family": "red"}, {"family": "red", "source": "test"}, {"family": "none"}):
            assert pages(api, wanted) == pages(peer, wanted)  # of equal scores in any order


def pages(api: httpx.Client, wanted: dict) -> list[tuple[str, float]]:
    found, offset = [], 0
    while offset is not None:
        question = {"text": "红色圆形", "limit": 4, "offset": offset, "filter": wanted or None}
        answer = api.post("/v1/search", json=question).json()
        found, offset = found + answer["hits"], answer["next_offset"]
    assert found == sorted(found, key=lambda hit: -hit["score"])
    return sorted((hit["image_id"], hit["score"]) for hit in found)


def test_triton_compares_with_all_and_a_release_takes_its_collection_along(
    index: Path, release: Release, client: "pymilvus.MilvusClient", tmp_path: Path
) -> None:
    made, serving = tmp_path / "release", tmp_path / "serving"
    made.mkdir()
    release_id = assemble(
        release.onnx, {"test": Gallery(release.store.folder, index)}, release.golden, TOP_K, TRITON, made
    )
    name = collection_in(index / FILE)
    client.drop_collection(name)  # as on another server
    read_index(index)
    with triton_of(release._replace(folder=made, id=release_id), folder=tmp_path / "served") as triton:
        probe(triton.client, read_golden(made / "golden"), release_id)
        texts = release.truth.texts[:20]
        found = [one.scores for one in search(triton.client, texts)]
    true = top_k(release.truth.image_features, release.truth.text_features[:20], TOP_K)[1]
    np.testing.assert_allclose(found, true, atol=1e-4)
    seal(made, release.truth.weights_id, ("test",))
    releases.add(serving, release.folder, keep=None)
    releases.add(serving, made, keep=None)
    shutil.rmtree(made)
    assert client.has_collection(name)
    releases.remove(serving, [release_id], "a test")
    assert client.list_collections() == []


def test_an_index_below_the_gate_is_refused(release: Release, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"min_recall": 1.1})
    with pytest.raises(UserError, match=r"finds 1.0000 of the true top 10; index.min_recall: 1.1"):
        build_index(release.onnx, release.store, list(release.truth.texts), params, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_no_address_nobody_there_and_no_package_are_said(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESS, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"CLIP_MILVUS=http://127.0.0.1:\d+: no Milvus answers there: "):
        read_index(index)
    monkeypatch.delenv(ADDRESS)
    with pytest.raises(UserError, match=r"set CLIP_MILVUS to the server's address, as http://"):
        read_index(index)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UserError, match=r"needs pymilvus: pip install 'clip-core\[milvus\]'"):
        read_index(index)
