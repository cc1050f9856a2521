"""What the gateway adds to a search, and how soon the page and /livez are answered while clients search."""

import json
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np

from benchmarks.clients import noise_of, quietest, timed
from benchmarks.command import read_options
from benchmarks.compare import spread_of
from benchmarks.data import captions, photos
from benchmarks.models import model_at, prepare
from benchmarks.report import keep, machine
from clip_core.serve.gallery import make_gallery
from clip_core.serve.queries import search
from clip_core.serve.triton import connect
from tests.served import serving

CLIENTS = 8
NUM = 96  # searches in a run
NUM_PICTURES = 50
PROBES = ("/livez", "/")
PAUSE = 0.01  # seconds between two probes


def main() -> None:
    """Each text is searched through the gateway, then straight by Triton; a disturbed round is taken again."""
    options = read_options("gateway", repeats=5)
    model = model_at(prepare(options.model, options.work))
    texts = captions(model.tokenizer, NUM)
    with tempfile.TemporaryDirectory(dir=options.work) as folder, served(model.weights, Path(folder)) as (url, address):
        with closing(HTTPConnection(urlsplit(url).netloc)) as gateway, closing(connect(address)) as triton:

            def through_gateway(text: str) -> list[float]:
                return [hit["score"] for hit in _read(gateway, f"/api/search?text={quote(text)}")["hits"]]

            def straight(text: str) -> list[float]:
                return search(triton, [text])[0].scores.tolist()

            difference = max(np.abs(np.subtract(through_gateway(text), straight(text))).max() for text in texts)

            def measure() -> np.ndarray:
                return np.array([[timed(through_gateway, text)[0], timed(straight, text)[0]] for text in texts])

            taken = quietest(measure, options.repeats)
        probes = probe(url, texts)
    row = _row(taken, float(difference))
    rows = {f"1 client, {NUM} searches: gateway / Triton": row}
    result = {"model": options.model, "pictures": NUM_PICTURES, **machine(1), "rows": rows, "probes": probes}
    keep("gateway", result, options.results)
    print(f"the gateway adds {row['added_p50_ms']} ms (p50, min - median - max); probes, ms: {probes}")


@contextmanager
def served(weights: Path, folder: Path) -> Generator[tuple[str, str]]:
    """The addresses of `make serve` and of its Triton, with a release of the weights and made-up photos."""
    (folder / "photos").mkdir()
    for number, photo in enumerate(photos(NUM_PICTURES)):
        (folder / "photos" / f"{number}.jpg").write_bytes(photo)
    out = folder / "serving"
    make_gallery(weights, {"photos": folder / "photos"}, out)
    with serving(folder, "--serving", str(out)) as (url, _):
        yield url, json.loads((out / "running.json").read_text(encoding="utf-8"))["address"]


def probe(url: str, texts: list[str]) -> dict[str, dict[str, float]]:
    """Milliseconds until each of PROBES is answered, p50, p99 and the longest, while CLIENTS search all the texts."""

    def ask(some: list[str]) -> None:
        with closing(HTTPConnection(urlsplit(url).netloc)) as connection:
            for text in some:
                _read(connection, f"/api/search?text={quote(text)}")

    found: dict[str, list[float]] = {path: [] for path in PROBES}
    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(ask, texts[number::CLIENTS]) for number in range(CLIENTS)]
        while not all(client.done() for client in clients):
            for path, seconds in found.items():
                with closing(HTTPConnection(urlsplit(url).netloc)) as connection:
                    seconds.append(timed(partial(_answer, connection), path)[0])
            time.sleep(PAUSE)
        for client in clients:
            client.result()
    return {
        path: {name: round(1000 * float(np.percentile(seconds, q)), 1) for name, q in PERCENTILES.items()}
        | {"num": len(seconds)}
        for path, seconds in found.items()
    }


PERCENTILES = {"p50": 50, "p99": 99, "max": 100}


def _read(connection: HTTPConnection, path: str) -> dict:
    return json.loads(_answer(connection, path))


def _answer(connection: HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    return body


def _row(taken: list[tuple[float, np.ndarray]], difference: float) -> dict:
    others, seconds = [one for one, _ in taken], [one for _, one in taken]
    medians = [np.median(one, axis=0) for one in seconds]
    return {
        "num": NUM,
        "ratio": spread_of([theirs / ours for ours, theirs in medians]),
        "our_seconds": spread_of([one[:, 0].sum() for one in seconds]),
        "peer_seconds": spread_of([one[:, 1].sum() for one in seconds]),
        "added_p50_ms": spread_of([round(1000 * (ours - theirs), 2) for ours, theirs in medians]),
        **noise_of(others),
        "agreement": {"largest_difference": difference},
    }


if __name__ == "__main__":
    main()
