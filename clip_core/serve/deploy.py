"""The proof of a release: a real Triton serves a copy of it and is asked what torch and the offline metrics answer."""

import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip_core.errors import UserError
from clip_core.serve.golden import Golden
from clip_core.serve.queries import encode_images, encode_texts, search
from clip_core.serve.release import new_live_repository, probe_public
from clip_core.serve.triton import connect, triton_server
from clip_core.serve.truth import Truth

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

AT = (1, 5, 10)
ROUNDING = 1e-5  # by which two runtimes' scores may differ, with a wide margin; closer scores may change places


def prove(repository: Path, live: Path, golden: Golden, truth: Truth, num_timed: int) -> dict:
    """What a real Triton answers about a copy of `repository` in the folder `live`; ValueError when it is wrong.

    Server and copy are gone afterwards; a failure leaves the server's log.
    """
    shutil.rmtree(live, ignore_errors=True)
    models = new_live_repository(repository, live / "repository")
    started = time.monotonic()
    with triton_server(live / "repository", models, live / "triton.log") as server:
        seconds_to_ready = time.monotonic() - started
        client = connect(server.address)
        try:
            report = {
                "release": golden.release,
                "golden_max_difference": probe_public(client, live / "repository"),
                "recall": _recall_through(client, truth),
                "latency_ms": latencies(client, golden, num_timed),
                "seconds_to_ready": round(seconds_to_ready, 1),
                "versions": {
                    "tritonserver": client.get_server_metadata().version,
                    **{name: version(name) for name in ("torch", "onnxruntime", "tritonclient")},
                },
            }
        finally:
            client.close()
    shutil.rmtree(live)
    return report


def latencies(client: "InferenceServerClient", golden: Golden, num_timed: int) -> dict[str, dict[str, float]]:
    """The p50 and p99 in ms of each public model, one request at a time."""
    text, image = golden.texts[0], golden.images[0]
    ask = {
        "clip_text": lambda: encode_texts(client, [text]),
        "clip_image": lambda: encode_images(client, [image]),
        "clip_search": lambda: search(client, [text]),
    }
    return {model: _percentiles(request, num_timed) for model, request in ask.items()}


def compare_recall(found: Sequence[Sequence[str]], truth: Truth) -> dict[str, dict[str, float]]:
    """The recall of the ids that were found, beside the offline one.

    They must agree but for queries whose best right picture is level with a wrong one; else ValueError.
    """
    hits = _hits(found, truth)  # (texts, found)
    first, last = _ranks(truth)
    recall = {}
    for k in (k for k in AT if k <= hits.shape[1]):
        hit = hits[:, :k].any(axis=1)
        level = (first <= k) & (last > k)
        values = {"served": float(hit.mean()), "offline": truth.recall[k], "level_queries": int(level.sum())}
        wrong = np.flatnonzero((hit != (first <= k)) & ~level)
        if len(wrong) or abs(values["served"] - values["offline"]) > level.mean() + 1e-9:
            named = "".join(f"\n  {truth.texts[i]}" for i in wrong[:5])
            raise UserError(f"recall@{k} through gRPC is not the offline one: {values}{named}")
        recall[f"text_to_image_recall@{k}"] = values
    return recall


def _hits(found: Sequence[Sequence[str]], truth: Truth) -> np.ndarray:
    right = [{truth.image_ids[place] for place in places} for places in truth.right]
    return np.array([[name in ids for name in row] for row, ids in zip(found, right, strict=True)])


def _ranks(truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each text's best right picture if wrong ones of equal score stand behind it, and if before."""
    ranks = np.empty((2, len(truth.texts)), dtype=np.int64)
    for row, (features, right) in enumerate(zip(truth.text_features, truth.right, strict=True)):
        scores = truth.image_features @ features
        wrong = np.delete(scores, right)
        ranks[:, row] = [1 + (wrong > scores[right].max() + margin).sum() for margin in (ROUNDING, -ROUNDING)]
    return ranks[0], ranks[1]


def _recall_through(client: "InferenceServerClient", truth: Truth) -> dict:
    print(f"asking {len(truth.texts)} test queries through gRPC", flush=True)
    return compare_recall([found.ids for found in search(client, truth.texts)], truth)


def _percentiles(request: Callable[[], object], num_timed: int) -> dict[str, float]:
    times = []
    for _ in range(num_timed):
        started = time.perf_counter()
        request()
        times.append(1000 * (time.perf_counter() - started))
    return {"p50": round(float(np.percentile(times, 50)), 2), "p99": round(float(np.percentile(times, 99)), 2)}
