"""The proof of a release: a real Triton serves it and is asked what torch and the offline metrics answer."""

import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip_core.errors import UserError
from clip_core.serve import live
from clip_core.serve.golden import Golden, read_golden
from clip_core.serve.queries import classify, encode_images, encode_texts, search, similar
from clip_core.serve.triton import Triton, triton_server
from clip_core.serve.truth import Truth

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

AT = (1, 5, 10)
ROUNDING = 1e-5  # by which two runtimes' scores may differ, with a wide margin; closer scores may change places


def prove(folder: Path, release: str, truth: Truth, allowed: float | None, num_timed: int, log: Path) -> dict:
    """What a real Triton answers about the release in `folder`; UserError when it is wrong.

    `allowed`: as in `compare_recall`.
    The server is gone afterwards; a failure leaves its `log`.
    """
    with proved(folder, release, log) as (client, report):
        return report | {
            "recall": _recall_through(client, truth, allowed),
            "latency_ms": latencies(client, read_golden(folder / "golden"), num_timed),
            "versions": {
                "tritonserver": client.get_server_metadata().version,
                **{name: version(name) for name in ("torch", "onnxruntime", "tritonclient")},
            },
        }


@contextmanager
def proved(folder: Path, release: str, log: Path) -> Generator[tuple["InferenceServerClient", dict]]:
    """A client of a Triton that serves the release in `folder` and answers its golden queries, and how well it does.

    WrongAnswers when it does not.
    """
    live_folder = folder / ".live"
    live_folder.mkdir()
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        with triton_server(live_folder, log) as server, closing(Triton(server)) as triton:
            live.load(triton, folder, release)
            seconds_to_ready = round(time.monotonic() - started, 1)
            live.publish(triton, release, number=1)
            differences = live.probe_public(triton, folder, release)
            yield (
                triton.client,
                {"release": release, "golden_max_difference": differences, "seconds_to_ready": seconds_to_ready},
            )
    finally:
        shutil.rmtree(live_folder, ignore_errors=True)
    log.unlink()


def latencies(client: "InferenceServerClient", golden: Golden, num_timed: int) -> dict[str, dict[str, float]]:
    """The p50 and p99 in ms of each public model, one request at a time."""
    image = golden.images[0]
    texts = (f"{number} {golden.texts[0]}" for number in count())  # one that was asked before would come from the cache
    ask = {
        "clip_text": lambda: encode_texts(client, [next(texts)]),
        "clip_image": lambda: encode_images(client, [image]),
        "clip_search": lambda: search(client, [next(texts)]),
        "clip_similar": lambda: similar(client, [image]),
        "clip_classify": lambda: classify(client, [image], [next(texts)], ["{}"]),
    }
    return {model: _percentiles(request, num_timed) for model, request in ask.items()}


def compare_recall(
    found: Sequence[Sequence[str]], truth: Truth, allowed: float | None = None
) -> dict[str, dict[str, float]]:
    """The recall of the ids that were found, beside the offline one.

    They must agree but for queries whose best right picture is level with a wrong one; or where the towers have another
    precision, the mean recalls but for the difference that is `allowed`. Else UserError.
    """
    hits = _hits(found, truth)  # (texts, found)
    first, last = _ranks(truth)
    recall = {}
    for k in (k for k in AT if k <= hits.shape[1]):
        hit = hits[:, :k].any(axis=1)
        level = (first <= k) & (last > k)
        values = {"served": float(hit.mean()), "offline": truth.recall[k], "level_queries": int(level.sum())}
        wrong = np.flatnonzero((hit != (first <= k)) & ~level)
        if allowed is None and (len(wrong) or abs(values["served"] - values["offline"]) > level.mean() + 1e-9):
            named = "".join(f"\n  {truth.texts[i]}" for i in wrong[:5])
            raise UserError(f"recall@{k} through gRPC is not the offline one: {values}{named}")
        recall[f"text_to_image_recall@{k}"] = values
    served, offline = (float(np.mean([values[side] for values in recall.values()])) for side in ("served", "offline"))
    if allowed is not None and not abs(served - offline) <= allowed:
        raise UserError(
            f"the mean recall through gRPC is {served:.4f}, the offline one {offline:.4f}; "
            f"export.max_recall_difference: {allowed}. Nothing is published."
        )
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


def _recall_through(client: "InferenceServerClient", truth: Truth, allowed: float | None) -> dict:
    print(f"asking {len(truth.texts)} test queries through gRPC", flush=True)
    return compare_recall([found.ids for found in search(client, truth.texts)], truth, allowed)


def _percentiles(request: Callable[[], object], num_timed: int) -> dict[str, float]:
    times = []
    for _ in range(num_timed):
        started = time.perf_counter()
        request()
        times.append(1000 * (time.perf_counter() - started))
    return {"p50": round(float(np.percentile(times, 50)), 2), "p99": round(float(np.percentile(times, 99)), 2)}
