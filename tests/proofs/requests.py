"""Ten thousand bad requests to the gateway and to Triton, beside a thousand idle connections, and good ones between.

`NUM=500` in the environment asks so many.
"""

import json
import os
import resource
import socket
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from benchmarks.noise import family
from tests.bad_requests import Target, ask_badly
from tests.served import of, serving
from tests.tiny import tiny_store
from tests.tiny_release import make_release

IDLE = 1000
USUAL = 1024  # files that a process may open where nobody has said more
SLOW = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
MINUTE = 60


def prove() -> dict:
    """How each kind of bad request was answered, how many good ones were, and the memory at the start and the end."""
    from clip_core.data.store import open_store

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL, most))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny_store(folder / "store")
        release = make_release(folder / "one", open_store(folder / "store"), seed=1)
        with serving(folder, *of(folder / "serving", release)) as (url, process):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # our own: the gateway has raised its
            gateway = httpx.URL(url)
            address = json.loads((folder / "serving" / "running.json").read_text())["address"]
            target = Target((gateway.host, gateway.port or 80), address, release)
            num = int(os.environ.get("NUM", "10000"))
            warm, _ = ask_badly(target, range(num, num + num // 10), num_threads=4)
            before, mib = family(process.pid), _mib(process.pid)
            with idle(target.gateway) as connections:
                found, good = ask_badly(target, range(num), num_threads=4)
                still = sum(_is_answered(one) for one in connections)
            ready = httpx.get(f"{url}/readyz", trust_env=False, timeout=MINUTE)
            assert (ready.status_code, family(process.pid)) == (200, before), "a process has ended"
            return {
                "bad": sum(answers.total() for answers in found.values()),
                "good_answered": good,
                "idle_connections": len(connections),
                "idle_answered_at_the_end": still,
                "slow_body": _slow(target.gateway),
                "gateway_mib": [mib, _mib(process.pid)],
                "warm_up": sum(answers.total() for answers in warm.values()),
                "answers": {kind: dict(sorted(answers.items())) for kind, answers in found.items()},
            }


@contextmanager
def idle(address: tuple[str, int]) -> Generator[list[socket.socket]]:
    """Connections that ask nothing as long as the block runs."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address, MINUTE)) for _ in range(IDLE)]


def _is_answered(connection: socket.socket) -> bool:
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return connection.recv(4096).startswith(b"HTTP/1.1 200")


def _slow(address: tuple[str, int]) -> dict:
    """What a body that does not come is answered by, and after how many seconds."""
    started = time.monotonic()
    with socket.create_connection(address, MINUTE) as connection:
        connection.sendall(SLOW)
        status = connection.recv(4096)[9:12].decode()
    assert status == "408"
    return {"status": status, "seconds": round(time.monotonic() - started, 1)}


def _mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024
