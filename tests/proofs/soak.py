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
from contextlib import closing
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from benchmarks.noise import family
from clip_core.serve.queries import classify
from clip_core.serve.triton import connect, shared_memory
from tests.bad_requests import PATIENCE, Target, ask_badly, assert_good
from tests.served import of, serving
from tests.tiny import tiny_store
from tests.tiny_release import Release, make_release

EVERY = 2.0  # seconds between two looks at the memory
BAD_IN_A_ROUND = 100
MOST = 1.05  # of the memory in the middle third; the first one is the warm-up
MODEL = re.compile(r"/(\w+)_[0-9a-f]{16}/")  # in the command of the process that runs it
MIB = 2**20


def prove() -> dict:
    """How many were asked, and the MiB of each process: at the start, in the middle and last third, and the slope."""
    from clip_core.data.store import open_store

    minutes = float(os.environ.get("MINUTES", "30"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny_store(folder / "store")
        release = make_release(folder / "one", open_store(folder / "store"), seed=1)
        asked, mib = soak(folder, release, 60 * minutes)
    figures = {name: _figures(values, minutes / 60) for name, values in sorted(mib.items())}
    print(json.dumps(figures), flush=True)
    assert_flat(mib)
    return {"minutes": minutes, "asked": dict(sorted(asked.items())), "mib": figures}


def _figures(mib: list[float], hours: float) -> dict:
    middle, last = thirds(mib)
    return {
        "start": round(mib[0], 1),
        "medians": [round(middle, 1), round(last, 1)],
        "grows_per_hour": round((last - middle) / (hours / 3), 1),
    }


def soak(folder: Path, release: Release, seconds: float) -> tuple[Counter[str], dict[str, list[float]]]:
    """How many of which kind a gateway was asked for so long, and the memory of its processes meanwhile.

    AssertionError when a good one is not answered rightly, a process ends or begins, or shared memory is left.
    """
    with serving(folder, *of(folder / "serving", release), "--no-browser") as (url, process):
        gateway = httpx.URL(url)
        address = json.loads((folder / "serving" / "running.json").read_text())["address"]
        target = Target((gateway.host, gateway.port or 80), address, release)
        before = processes(process.pid)
        asked, mib = _ask(target, process.pid, seconds)
        assert processes(process.pid) == before
    assert not shared_memory(f"clip-{process.pid}-")
    return asked, mib


def _ask(target: Target, pid: int, seconds: float) -> tuple[Counter[str], dict[str, list[float]]]:
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

    def well(assert_right: Callable[[Target, int], None]) -> Callable[[int], int]:
        def ask(number: int) -> int:
            assert_right(target, number)
            return 1

        return ask

    kinds = {
        "bad": badly,
        "searches by text and picture": well(assert_good),
        "embeddings": well(assert_features),
        "classifications": well(assert_labels),
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


def assert_features(target: Target, number: int) -> None:
    """A text and a picture in one request are answered with torch's features."""
    place, truth = number % 12, target.release.truth
    answer = _post(target, "embeddings", model="chinese-clip", input=[truth.texts[place], _picture(target, place)])
    features = [one["embedding"] for one in answer["data"]]
    np.testing.assert_allclose(features, [truth.text_features[place], truth.image_features[place]], atol=2e-4)


def assert_labels(target: Target, number: int) -> None:
    """A picture gets torch's scores with labels, by Triton's own model and by the gateway in turn."""
    place, truth = number % 12, target.release.truth
    labels = truth.texts[:4]
    if number % 2:
        with closing(connect(target.triton)) as client:
            judged = classify(client, [target.release.store.image_bytes(place)], labels, ["{}"])
        scores = judged.scores[0].tolist()
    else:
        answer = _post(target, "classify", image=_picture(target, place), labels=labels, templates=["{}"])
        found = {one["label"]: one["score"] for one in answer["labels"]}
        scores = [found[label] for label in labels]
    np.testing.assert_allclose(scores, truth.text_features[:4] @ truth.image_features[place], atol=2e-4)


def _picture(target: Target, place: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(target.release.store.image_bytes(place)).decode()}"


def _post(target: Target, path: str, **question: object) -> dict:
    url = "http://{}:{}/v1/{}".format(*target.gateway, path)
    answer = httpx.post(url, json=question, timeout=PATIENCE, trust_env=False)
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
    return answer.json()


def processes(pid: int) -> dict[int, str]:
    """The gateway, Triton, and the processes of its models, each with what it is called."""
    found = {}
    for one in family(pid):
        command = Path(f"/proc/{one}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
        model = MODEL.search(command)
        name = "guard" if "guard.py" in command else "tritonserver"
        found[one] = "gateway" if one == pid else model[1] if model else name
    return found


def memory(pid: int) -> dict[str, float]:
    """The MiB in memory of each of the processes, and of what they share in /dev/shm."""
    found = {name: _mib(one) for one, name in processes(pid).items() if name != "guard"}  # which only waits
    segments = [Path("/dev/shm", name).stat() for name in shared_memory(f"clip-{pid}-")]
    return found | {"/dev/shm": sum(segment.st_blocks for segment in segments) * 512 / MIB}


def _mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def thirds(mib: list[float]) -> tuple[float, float]:
    """The medians of the middle third and of the last one."""
    third = len(mib) // 3
    return median(mib[third:-third]), median(mib[-third:])


def assert_flat(mib: dict[str, list[float]]) -> None:
    """In the last third nothing has more than MOST times the memory that it had in the middle one."""
    found = {name: thirds(values) for name, values in mib.items()}
    grown = {name: (middle, last) for name, (middle, last) in found.items() if last > MOST * middle}
    assert not grown, f"grows, in MiB: {grown}"
