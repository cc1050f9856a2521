"""`kill -9` of each process behind `make serve` under load, and stopped ones: how long it is down, what fails."""

import os
import signal
import tempfile
import time
from pathlib import Path

from tests.served import of, serving
from tests.test_supervisor import Asking, Running, processes_of, status, until_ready
from tests.tiny import tiny_store
from tests.tiny_release import make_release

TIMES = 2
VICTIMS = {
    "text_preprocess": signal.SIGKILL,
    "text_core": signal.SIGKILL,
    "image_preprocess": signal.SIGKILL,
    "image_core": signal.SIGKILL,
    "clip_search": signal.SIGKILL,
    "clip_similar": signal.SIGKILL,
    "clip_classify": signal.SIGKILL,
    "bin/tritonserver": signal.SIGKILL,
    "text_core, stopped": signal.SIGSTOP,
    "bin/tritonserver, stopped": signal.SIGSTOP,
}
SECONDS = 180


def prove() -> dict:
    """For each process: until all is ready again, until searches are answered again, and how many failed meanwhile."""
    from clip_core.data.store import open_store

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny_store(folder / "store")
        release = make_release(folder / "one", open_store(folder / "store"), seed=1)
        found: dict[str, list[dict]] = {}
        for victim, number in VICTIMS.items():
            for _ in range(1 if "stopped" in victim else TIMES):
                served = folder / f"serving-{sum(map(len, found.values()))}"
                with serving(folder, *of(served, release)) as (url, process):
                    seen = recover(Running(url, process, served), release.truth.texts[0], victim, number)
                found.setdefault(victim, []).append(seen)
                print(victim, seen, flush=True)
    return found


def recover(running: Running, text: str, victim: str, number: signal.Signals) -> dict:
    with Asking(running, text) as asking:
        time.sleep(1)
        since = time.monotonic()
        for pid in processes_of(running, victim.partition(",")[0]):
            os.kill(pid, number)
        while status(f"{running.url}/readyz") == 200:
            assert time.monotonic() < since + SECONDS, "nobody saw it"
            time.sleep(0.05)
        noticed = time.monotonic() - since
        until_ready(running, SECONDS)
        ready = time.monotonic() - since
        asking.until_answered(30)
    assert status(f"{running.url}/livez") == 200
    codes = [code for _, code in asking.answered]
    assert set(codes) <= {200, 500, 503}
    return {
        "noticed_after_seconds": round(noticed, 1),
        "ready_after_seconds": round(ready, 1),
        "searches_down_seconds": round(asking.seconds_down(since), 1),
        "failed": sum(code != 200 for code in codes),
        "asked": len(codes),
    }
