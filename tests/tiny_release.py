"""A tiny release with random weights, and what to see of a Triton server from outside; for the tests of serving."""

import pickle
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.workers import made_once

if TYPE_CHECKING:
    from clip_core.config.export import Export
    from clip_core.data.store import Store
    from clip_core.serve.golden import Golden
    from clip_core.serve.triton import Server, Triton
    from clip_core.serve.truth import Truth

TOP_K = 10


class Release(NamedTuple):
    store: "Store"
    model: Path
    onnx: Path
    index: Path
    truth: "Truth"
    golden: "Golden"
    folder: Path  # the release itself
    id: str


def tiny_export(**others: Any) -> "Export":
    """The section `export` for tiny models, but for the `others`."""
    from clip_core.config.export import Export

    limits = Export(
        width=None,
        opset=20,
        max_feature_difference=1e-4,
        tie_margin=2e-4,
        precision="fp32",
        min_cosine=0.99,
        min_top10_overlap=0.9,
        max_recall_difference=0.002,
    )
    return limits.model_copy(update=others)


def make_release(folder: Path, store: "Store", seed: int, width: int | None = None) -> Release:
    """All that export, index and deploy make of a model with random weights, which are a function of `seed`.

    `width` is `export.width`: features of so many numbers of a model that counts as trained for that.
    """
    from clip_core.config.deploy import Deploy
    from clip_core.config.index import Index
    from clip_core.evaluate.benchmark import questions, read_benchmark
    from clip_core.evaluate.retrieval import ranks, recall_at
    from clip_core.inference.predictor import encode_pictures, load
    from clip_core.model.weights import save_weights
    from clip_core.serve.assemble import Gallery, assemble
    from clip_core.serve.export import export
    from clip_core.serve.gallery import TRITON
    from clip_core.serve.golden import Seen, make_golden
    from clip_core.serve.index import build_index
    from clip_core.serve.release import seal
    from clip_core.serve.truth import make_truth
    from tests.tiny import MADE, tiny_clip, tiny_tokenizer_json

    model, onnx, index, made = (folder / name for name in ("model", "onnx", "index", "release"))
    tokenizer_json = tiny_tokenizer_json(store)
    clip = tiny_clip(tokenizer_json, seed)
    clip.architecture = clip.architecture.model_copy(update={"matryoshka": (width,) if width else ()})
    save_weights(clip, tokenizer_json, model, MADE)
    benchmark = read_benchmark(store)
    asked = questions(benchmark, "all")
    texts = [benchmark.texts[i] for i in asked.asking_texts]
    limits = tiny_export(width=width)
    export(model, store, texts, limits, onnx)
    build_index(
        onnx, store, texts, Index(kind="exact", top_k=TOP_K, min_recall=1.0, metadata=("family", "source")), index
    )
    predictor = load(model, width=width)
    found = ranks(predictor.encode_texts(texts), encode_pictures(predictor, store), asked.right_images)
    metrics = {f"text_to_image_recall@{k}": {"value": recall_at(found, k)} for k in (1, 5, 10)}
    truth = make_truth(predictor, store, texts, asked.right_images, metrics)
    params = Deploy(num_golden=4, num_timed=5, max_feature_difference=1e-4, triton=TRITON)
    golden = make_golden(predictor, texts, {"test": Seen(store, truth.image_features)}, params, TOP_K)
    made.mkdir()
    release_id = assemble(onnx, {"test": Gallery(store.folder, index)}, golden, TOP_K, TRITON, made)
    seal(made, truth.weights_id, ("test",))
    return Release(store, model, onnx, index, truth, golden, made, release_id)


def processes_that_name(text: str) -> list[str]:
    """The command lines of the running processes in which `text` occurs."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if text in command:
            found.append(command)
    return found


def release_of_the_run(factory: pytest.TempPathFactory, store: "Store", seed: int, width: int | None = None) -> Release:
    """What `make_release` makes, once for all workers: an export takes seconds."""

    def make(folder: Path) -> None:
        (folder / "pickled").write_bytes(pickle.dumps(make_release(folder, store, seed, width)))

    folder = made_once(factory, f"release{seed}", make)
    return pickle.loads((folder / "pickled").read_bytes())  # noqa: S301 (a worker of this run has written it)


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> "Store":
    """The pictures of the tiny releases. Read only."""
    from clip_core.data.store import open_store
    from tests.tiny import tiny_store

    return open_store(made_once(tmp_path_factory, "gallery", lambda folder: tiny_store(folder / "store")) / "store")


@pytest.fixture(scope="session")
def release(gallery: "Store", tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of the gallery. Read only."""
    return release_of_the_run(tmp_path_factory, gallery, seed=1)


@pytest.fixture(scope="session")
def tiny_releases(
    release: Release, gallery: "Store", tmp_path_factory: pytest.TempPathFactory
) -> tuple[Release, Release]:
    """The release and another one of the same gallery. Read only."""
    return release, release_of_the_run(tmp_path_factory, gallery, seed=2)


@pytest.fixture(scope="session")
def narrow_release(gallery: "Store", tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of the same gallery with `export.width: 4`, half of what the model has. Read only."""
    return release_of_the_run(tmp_path_factory, gallery, seed=3, width=4)


def a_serving(folder: Path, *releases: Release) -> Path:
    """A folder of releases, as `make serve` has one; the first of them is current."""
    from clip_core.serve.releases import add

    for release in releases:
        add(folder, release.folder, keep=None)
    return folder


@contextmanager
def triton_of(*releases: Release, folder: Path) -> Generator["Triton"]:
    """A Triton server with the releases loaded, of which the first is public; nobody looks after it."""
    from clip_core.serve import live
    from clip_core.serve.triton import Triton, triton_server

    (folder / "live").mkdir(parents=True)
    with triton_server(folder / "live", folder / "triton.log") as server, closing(Triton(server)) as triton:
        for release in releases:
            live.load(triton, release.folder, release.id)
        live.publish(triton, releases[0].id, number=1)
        yield triton


@pytest.fixture(scope="session")
def triton(release: Release, narrow_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator["Server"]:
    """A Triton server of the first release; beside it, with names that end in its id, the narrow one.

    A test that changes what it serves has a server of its own.
    """
    with triton_of(release, narrow_release, folder=tmp_path_factory.mktemp("triton")) as triton:
        yield triton.server
