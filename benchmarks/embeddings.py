"""Texts to features over HTTP: our gateway in fp32 and int8 against a plain server, for 16 clients of a text each."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.clients import ask_at_once, quietest, row_of
from benchmarks.command import read_options
from benchmarks.compare import agreement
from benchmarks.data import captions, photos
from benchmarks.models import ROOT, Model, model_at, prepare
from benchmarks.report import keep, machine, spread
from clip_core.guard import free_port, start, stop
from clip_core.serve import releases
from clip_core.serve.assemble import state_id
from clip_core.serve.gallery import TOP_K, make_gallery
from clip_core.serve.precision import convert
from clip_core.serve.release import read_manifest, seal
from tests.served import serving

CLIENTS = 16
NUM = 256  # texts in a run
PLAIN = "plain FastAPI and transformers"
PATIENCE = 120  # seconds until the plain server answers


def main() -> None:
    """Every side gets the same texts in turn; a disturbed round is taken again."""
    options = read_options("embeddings", repeats=5)
    model = model_at(prepare(options.model, options.work))
    texts = captions(model.tokenizer, NUM)
    with tempfile.TemporaryDirectory(dir=options.work) as scratch, sides(model, Path(scratch)) as urls:
        connected = {side: partial(_connected, url) for side, url in urls.items()}
        features = {  # warms up, too
            side: np.stack(ask_at_once(connect, texts, CLIENTS)[1]) for side, connect in connected.items()
        }
        taken = quietest(
            lambda: {side: ask_at_once(connect, texts, CLIENTS)[0] for side, connect in connected.items()},
            options.repeats,
        )
    rows = {
        f"{CLIENTS} clients, {NUM} texts: gateway {side} / {PLAIN}": row_of(
            side, PLAIN, taken, CLIENTS, agreement(features[side], features[PLAIN])
        )
        for side in ("fp32", "int8")
    }
    keep("embeddings", {"model": options.model, **machine(1), "rows": rows}, options.results)
    for name, row in rows.items():
        print(f"{name}: {spread(row['ratio'])} times as many texts")


@contextmanager
def sides(model: Model, folder: Path) -> Generator[dict[str, str]]:
    """The addresses of `make serve` with the model in fp32 and in int8, and of the plain server."""
    (folder / "photos").mkdir()
    for number, photo in enumerate(photos(TOP_K)):
        (folder / "photos" / f"{number}.jpg").write_bytes(photo)
    make_gallery(model.weights, {"photos": folder / "photos"}, folder / "fp32")
    _add_in_int8(folder / "fp32", folder / "int8")
    with ExitStack() as stack:
        urls = {}
        for precision in ("fp32", "int8"):
            url, _ = stack.enter_context(serving(folder, "--serving", str(folder / precision), "--no-browser"))
            urls[precision] = url
        yield {**urls, PLAIN: stack.enter_context(_plain(model))}


def _add_in_int8(serving: Path, other: Path) -> None:
    """Adds to the new folder of releases `other` that of `serving`, with towers in int8."""
    made, release = other.with_name("made"), releases.current(serving)
    assert release is not None
    shutil.copytree(releases.folder_of(serving, release), made)
    manifest = read_manifest(made)
    for tower in ("text", "image"):
        convert(made / "models" / f"{tower}_core" / "1" / "model.onnx", "int8")
    golden = made / "golden" / "golden.json"
    # Random weights in int8 are far from torch's; all of TOP_K pictures are found in any order.
    facts = json.loads(golden.read_text(encoding="utf-8")) | {"max_difference": 2.0}
    golden.write_text(json.dumps(facts), encoding="utf-8")
    state_id(made)
    seal(made, manifest.weights, manifest.galleries)
    releases.add(other, made, keep=None)


@contextmanager
def _plain(model: Model) -> Generator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.plain", str(model.transformers), str(port)]
    process = start(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while True:
            try:
                with _connected(url) as embed:
                    embed("猫")
                break
            except ConnectionRefusedError:  # it imports torch
                assert process.poll() is None and time.monotonic() < deadline, "the plain server did not start"
                time.sleep(0.2)
        yield url
    finally:
        stop(process)


@contextmanager
def _connected(url: str) -> Generator[Callable[[str], np.ndarray]]:
    with closing(HTTPConnection(urlsplit(url).netloc)) as connection:

        def embed(text: str) -> np.ndarray:
            question = json.dumps({"model": "chinese-clip", "input": [text]})
            connection.request("POST", "/v1/embeddings", question, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            return np.array(json.loads(body)["data"][0]["embedding"])

        yield embed


if __name__ == "__main__":
    main()
