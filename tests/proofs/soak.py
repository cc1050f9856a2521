"""Half an hour of good and bad requests together: each good one is answered, no memory grows, nothing is left behind.

`MINUTES=3` in the environment makes it so many.
"""

import base64
import json
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from benchmarks.noise import family
from tests.bad_requests import PATIENCE, Target, ask_badly, assert_good
from tests.served import of, serving
from tests.tiny import tiny_store
from tests.tiny_release import Release, make_release

EVERY = 2.0  # seconds between two looks at the memory
BAD_IN_A_ROUND = 100
MOST = 1.05  # of the memory in the middle third; the first one is the warm-up
MODEL = re.compile(r"/(\w+)_[0-9a-f]{16}/")  # in the command of the process that runs it


def prove() -> dict:
    """How many were asked, and the MiB of each process: at the start, and the medians of the middle and last third."""
    from clip_core.data.store import open_store

    minutes, segments = float(os.environ.get("MINUTES", "30")), sorted(Path("/dev/shm").iterdir())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny_store(folder / "store")
        release = make_release(folder / "one", open_store(folder / "store"), seed=1)
        with serving(folder, *of(folder / "serving", release), "--no-browser") as (url, process):
            gateway = httpx.URL(url)
            address = json.loads((folder / "serving" / "running.json").read_text())["address"]
            target = Target((gateway.host, gateway.port or 80), address, release)
            processes = {pid: _command(pid) for pid in family(process.pid)}
            asked, mib = soak(target, url, process.pid, 60 * minutes)
            ended = [command for pid, command in processes.items() if pid not in family(process.pid)]
            assert not ended, f"ended: {ended}"
    assert sorted(Path("/dev/shm").iterdir()) == segments, "shared memory is left"
    assert_flat(mib)
    return {
        "minutes": minutes,
        "asked": dict(sorted(asked.items())),
        "mib": {name: {"start": values[0], "medians": medians(values)} for name, values in sorted(mib.items())},
    }


def soak(target: Target, url: str, pid: int, seconds: float) -> tuple[Counter[str], dict[str, list[float]]]:
    """How many of which kind were asked for so long, each good one answered rightly, and the memory meanwhile."""
    asked, ended, mib = Counter[str](), threading.Event(), dict[str, list[float]]()

    def again(kind: str, ask: Callable[[int], int]) -> None:
        number = 0
        try:
            while not ended.is_set():
                asked[kind] += ask(number)
                number += 1
        finally:
            ended.set()  # also when one was wrong: then all do

    def badly(number: int) -> int:
        seeds = range(number * BAD_IN_A_ROUND, (number + 1) * BAD_IN_A_ROUND)
        _, num_good = ask_badly(target, seeds, num_threads=2)
        asked["good, between bad ones"] += num_good
        return BAD_IN_A_ROUND

    def search(number: int) -> int:
        assert_good(target, number)
        return 1

    def embed(number: int) -> int:
        assert_features(url, target.release, number)
        return 1

    kinds: dict[str, Callable[[int], int]] = {
        "bad": badly,
        "searches by text and picture": search,
        "embeddings": embed,
    }
    with ThreadPoolExecutor(len(kinds)) as threads:
        running = [threads.submit(again, kind, ask) for kind, ask in kinds.items()]
        end = time.monotonic() + seconds
        while time.monotonic() < end and not ended.wait(EVERY):
            for name, size in memory(pid).items():
                mib.setdefault(name, []).append(size)
        ended.set()
        for one in running:
            one.result()
    return asked, mib


def assert_features(url: str, release: Release, number: int) -> None:
    """A text and a picture in one request are answered with torch's features."""
    place, truth = number % 12, release.truth
    picture = base64.b64encode(release.store.image_bytes(place)).decode()
    question = {"model": "chinese-clip", "input": [truth.texts[place], f"data:image/png;base64,{picture}"]}
    answer = httpx.post(f"{url}/v1/embeddings", json=question, timeout=PATIENCE, trust_env=False)
    assert answer.status_code == 200, f"embeddings: {answer.status_code} {answer.text}"
    features = [one["embedding"] for one in answer.json()["data"]]
    np.testing.assert_allclose(features, [truth.text_features[place], truth.image_features[place]], atol=2e-4)


def memory(pid: int) -> dict[str, float]:
    """The MiB in memory of the gateway, of Triton and of each of its models' processes."""
    found = {"gateway": _mib(pid)}
    for child in family(pid)[1:]:
        command = _command(child)
        if "guard.py" in command:  # only waits
            continue
        model = MODEL.search(command)
        found[model[1] if model else "tritonserver"] = _mib(child)
    return found


def medians(mib: list[float]) -> tuple[float, float]:
    """Of the middle third and of the last one."""
    third = len(mib) // 3
    return round(median(mib[third:-third]), 1), round(median(mib[-third:]), 1)


def assert_flat(mib: dict[str, list[float]]) -> None:
    """In the last third no process has more than MOST times the memory that it had in the middle one."""
    found = {name: medians(values) for name, values in mib.items()}
    grown = {name: (middle, last) for name, (middle, last) in found.items() if last > MOST * middle}
    assert not grown, f"grows, in MiB: {grown}"


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")


def _mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith("VmRSS"))
