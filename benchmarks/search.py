"""Searches of clients that ask at the same time, through Triton on this machine: as served today, and as before."""

import json
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.clients import ask_at_once, quietest, row_of
from benchmarks.command import read_options
from benchmarks.data import captions
from benchmarks.models import model_at, prepare
from benchmarks.report import keep, machine, spread
from clip_core.model.contract import read_contract, weights_id
from clip_core.serve import live
from clip_core.serve.assemble import Gallery, assemble
from clip_core.serve.export import export_alone
from clip_core.serve.gallery import TRITON
from clip_core.serve.golden import Golden
from clip_core.serve.queries import Found, search
from clip_core.serve.release import link_tree
from clip_core.serve.triton import Triton, connect, triton_server

CLIENTS = 8
NUM = 96  # searches in a run
NUM_PICTURES, TOP_K = 1000, 10
TODAY = "joined"
# What came before, laid over the models of today.
ALONE = """
class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        answers = []
        for request in requests:
            answers += super().execute([request])
        return answers
"""
PADDED = """
from clip_core.serve import triton_models
triton_models._without_padding = lambda token_ids: token_ids
"""
SIDES: dict[str, dict[str, str]] = {
    TODAY: {},
    "one at a time": {"clip_search": ALONE},
    "one at a time, padded": {"clip_search": ALONE, "text_core": PADDED},
}


def main() -> None:
    """Runs the same searches through every side in turn; a round that others disturbed is taken again."""
    options = read_options("search", repeats=5)
    model = model_at(prepare(options.model, options.work))
    texts = captions(model.tokenizer, NUM)
    with tempfile.TemporaryDirectory(dir=options.work) as folder, serving(model.weights, Path(folder)) as served:
        address, names = served
        answers = {side: run(address, name, texts)[1] for side, name in names.items()}  # warms up, too

        def measure() -> dict[str, np.ndarray]:
            seconds = {side: run(address, name, texts)[0] for side, name in names.items()}
            print(
                {side: round(float(CLIENTS / found.mean()), 1) for side, found in seconds.items()},
                "searches per second",
            )
            return seconds

        taken = quietest(measure, options.repeats)
    rows = {
        f"{CLIENTS} clients, {NUM} searches: {TODAY} / {side}": row_of(
            TODAY, side, taken, CLIENTS, {"largest_difference": _difference(answers[TODAY], answers[side])}
        )
        for side in list(SIDES)[1:]
    }
    result = {"model": options.model, "pictures": NUM_PICTURES, **machine(1), "rows": rows}
    keep("search-batches", result, options.results)
    for name, row in rows.items():
        for part in ("p50", "p99"):
            print(f"{name}: {part} {spread(row[f'our_{part}'])} s, before {spread(row[f'peer_{part}'])} s")


@contextmanager
def serving(weights: Path, folder: Path) -> Generator[tuple[str, dict[str, str]]]:
    """The address of a Triton server with every side, and the name of the search model of each."""
    onnx = weights.with_name("onnx")
    if not onnx.exists():
        export_alone(weights, onnx)
    made = release_of(onnx, folder)
    (folder / "live").mkdir()
    names = {}
    with triton_server(folder / "live", folder / "triton.log") as server, closing(Triton(server)) as triton:
        for number, (side, before) in enumerate(SIDES.items()):
            copy, name = folder / f"side-{number}", f"{number:016x}"
            link_tree(made, copy)
            for model, code in before.items():
                file = copy / "models" / model / "1" / "model.py"
                text = file.read_text(encoding="utf-8") + code
                file.unlink()  # a link
                file.write_text(text, encoding="utf-8")
            live.load(triton, copy, name)
            names[side] = f"clip_search_{name}"
        yield server.address, names


def release_of(onnx: Path, folder: Path) -> Path:
    """The files of a release of the export, with random features and no pictures."""
    features = np.random.default_rng(0).normal(size=(NUM_PICTURES, read_contract(onnx).embed_dim)).astype(np.float32)
    gallery = Gallery(folder / "store", folder / "index")
    for part in (*gallery, folder / "release"):
        part.mkdir()
    np.save(gallery.index / "features.npy", features / np.linalg.norm(features, axis=1, keepdims=True))
    image_ids = json.dumps([str(number) for number in range(NUM_PICTURES)])
    (gallery.index / "image_ids.json").write_text(image_ids, encoding="utf-8")
    (gallery.index / "index.json").write_text(
        json.dumps({"weights_id": weights_id(onnx), "recall": 1.0}), encoding="utf-8"
    )
    golden = Golden(weights_id(onnx), [], features[:0], [], features[:0], {}, 0.0)  # no rollout will ask
    assemble(onnx, {"random": gallery}, golden, TOP_K, TRITON, folder / "release")
    return folder / "release"


def run(address: str, model: str, texts: list[str]) -> tuple[np.ndarray, list[Found]]:
    """How many seconds each search takes while all clients ask, and the answers."""

    @contextmanager
    def connected() -> Generator[Callable[[str], Found]]:
        with closing(connect(address)) as client:
            yield lambda text: search(client, [text], model)[0]

    return ask_at_once(connected, texts, CLIENTS)


def _difference(ours: list[Found], theirs: list[Found]) -> float:
    return float(max(np.abs(a.scores - b.scores).max() for a, b in zip(ours, theirs, strict=True)))


if __name__ == "__main__":
    main()
