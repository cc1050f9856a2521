"""What Triton adds to the text tower, asked by NVIDIA's perf_analyzer: against raw onnxruntime in a process of its own.

Ours is given texts; the raw tower token ids that are ready, as many at once as clients ask.
"""

import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks import compare
from benchmarks.clients import noise_of, quietest
from benchmarks.command import read_options
from benchmarks.compare import Worker, agreement, spread_of, workers
from benchmarks.data import captions
from benchmarks.models import model_at, prepare
from benchmarks.report import keep, machine, spread
from benchmarks.search import release_of
from clip_core.inference.onnx_towers import open_session
from clip_core.inference.onnx_towers import run as run_tower
from clip_core.model.contract import read_contract
from clip_core.serve import live
from clip_core.serve.export import export_alone
from clip_core.serve.gallery import TRITON
from clip_core.serve.install import PACKAGES, triton_home
from clip_core.serve.queries import encode_texts
from clip_core.serve.triton import Triton, triton_server
from clip_core.text import load_tokenizer
from clip_core.uv import uv

CLIENTS = (8, 1)
NUM = 256  # texts in a run
RELEASE = "0" * 16
# Its later wheels do not hold the program, or one for a newer C library; PyPI's `perf-analyzer` is empty here.
WHEEL = "tritonclient==2.51.0"
LIBRARIES = ("libb64.so.0d", "libcudart.so.12")  # it wants them by these names; they lie beside Triton's


def main() -> None:
    """Both sides in turn, for many clients and for one; a disturbed round is taken again."""
    options = read_options("overhead", repeats=5)
    model = model_at(prepare(options.model, options.work))
    analyzer, texts = perf_analyzer(options.work), captions(model.tokenizer, NUM)
    onnx = model.weights.with_name("onnx")
    if not onnx.exists():
        export_alone(model.weights, onnx)
    specs = [{"task": "raw", "model": str(options.work / options.model), "at_once": clients} for clients in CLIENTS]
    with (
        tempfile.TemporaryDirectory(dir=options.work) as scratch,
        workers(*({**spec, "threads": TRITON.threads} for spec in specs)) as (raw, found),
    ):
        folder = Path(scratch)
        (folder / "live").mkdir()
        asked = folder / "texts.json"
        asked.write_text(json.dumps({"data": [{"TEXT": [text]} for text in texts]}), encoding="utf-8")
        with triton_server(folder / "live", folder / "log") as server, closing(Triton(server)) as triton:
            live.load(triton, release_of(onnx, folder), RELEASE)
            served = encode_texts(triton.client, texts, f"clip_text_{RELEASE}")  # warms up, too
            taken = quietest(lambda: _seconds(analyzer, server.address, asked, raw), options.repeats)
    rows = {
        f"{clients} at once, {NUM} texts: clip_text / raw onnxruntime": _row(
            [(others, seconds[place]) for others, seconds in taken], agreement(served, found[place])
        )
        for place, clients in enumerate(CLIENTS)
    }
    keep("overhead", {"model": options.model, **machine(TRITON.threads), "rows": rows}, options.results)
    of_many, of_one = rows.values()
    print(f"{spread(of_many['ratio'])} of the raw throughput; a request takes {spread(of_one['added_ms'])} ms more")


def make(spec: dict) -> Callable[[], np.ndarray]:
    """The raw side: the tower's session as Triton's model opens it, on texts that are tokenized before."""
    model = model_at(spec["model"])
    onnx = model.weights.with_name("onnx")
    tokenizer = load_tokenizer(model.tokenizer, read_contract(onnx).context_length)
    texts, at_once = captions(model.tokenizer, NUM), spec["at_once"]
    rows = [tokenizer(texts[start : start + at_once]) for start in range(0, NUM, at_once)]  # padded to their longest
    session = open_session(onnx / "text.onnx", spec["threads"])
    return lambda: np.concatenate([run_tower(session, some) for some in rows])


def perf_analyzer(work: Path) -> Path:
    """NVIDIA's load generator; its wheel is fetched when it is not there yet."""
    folder = work / "perf_analyzer"
    program = folder / "bin" / "perf_analyzer"
    if not program.exists():
        uv("pip", "install", "--quiet", "--no-deps", "--target", str(folder), WHEEL)
        program.chmod(0o755)
    for name in LIBRARIES:
        stem, _, version = name.partition(".so.")
        (library,) = (triton_home() / "environment" / PACKAGES / "nvidia_pytriton.libs").glob(f"{stem}-*.so.{version}*")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(library)
    return program


def _seconds(analyzer: Path, address: str, asked: Path, raw: list[Worker]) -> list[tuple[float, float]]:
    """For each number of clients, how long Triton and the raw tower take for all texts."""
    return [
        (NUM / _per_second(analyzer, address, asked, clients), worker.seconds())
        for clients, worker in zip(CLIENTS, raw, strict=True)
    ]


def _per_second(analyzer: Path, address: str, asked: Path, clients: int) -> float:
    table = asked.with_name("table.csv")
    command = [str(analyzer), "-m", f"clip_text_{RELEASE}", "-i", "grpc", "-u", address, "-f", str(table)]
    command += ["--input-data", str(asked), "--concurrency-range", str(clients)]
    # The mean of three windows; whether they are stable our repeats tell. Its --request-count counts whole seconds.
    command += ["-p", str(round(1000 * compare.LEAST_SECONDS)), "-r", "3", "-s", "999"]
    libraries = os.environ | {"LD_LIBRARY_PATH": str(analyzer.parents[1])}
    done = subprocess.run(command, env=libraries, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 and table.exists(), done.stdout
    with table.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    return float(row["Inferences/Second"])


def _row(taken: list[tuple[float, tuple[float, float]]], alike: dict[str, float]) -> dict:
    ours, theirs = ([seconds[side] for _, seconds in taken] for side in (0, 1))
    return {
        "num": NUM,
        "ratio": spread_of([b / a for a, b in zip(ours, theirs, strict=True)]),
        "our_seconds": spread_of(ours),
        "peer_seconds": spread_of(theirs),
        "added_ms": spread_of([1000 * (a - b) / NUM for a, b in zip(ours, theirs, strict=True)]),
        **noise_of([others for others, _ in taken]),
        "agreement": alike,
    }


if __name__ == "__main__":
    main()
