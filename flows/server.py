"""The project's own Prefect server: on loopback, its state in `.prefect`."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_core.env import set_switches
from clip_core.errors import UserError
from clip_core.guard import free_port, start, stop

HOST = "127.0.0.1"
PATIENCE = 120  # seconds for the server to come up; 6 to 17 on two quiet cores


def set_environment() -> None:
    """Keeps Prefect's state in the project and says where that is; what the user has set stays."""
    set_switches()
    root = Path.cwd()
    os.environ.setdefault("PREFECT_HOME", str(root / ".prefect"))
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")  # else a mistyped address starts a server
    # By default leases are forgotten when the server stops, and the slot of a run it was in is never free again.
    os.environ["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] = "prefect.server.concurrency.lease_storage.filesystem"
    os.environ["CLIP_PROJECT"] = str(root)  # the working directory of deployed flows, see prefect.yaml
    if url := running_server():
        os.environ["PREFECT_API_URL"] = url


def home() -> Path:
    return Path(os.environ["PREFECT_HOME"])


def running_server() -> str | None:
    """The API address of the server that the user named, or of the project's own where one answers."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    with suppress(OSError, ValueError):  # no file or half a one, no such process or (its number reused) another user's
        url, platform = (home() / "running").read_text().split()
        os.kill(int(platform), 0)  # a killed platform leaves the file, and its port may be another project's by now
        return url if is_up(url) else None
    return None


def is_up(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        return answer.status == 200
    return False


@contextmanager
def server(port: int) -> Generator[str]:
    """A Prefect server with its UI on loopback; gives its API address and stops it afterwards."""
    home().mkdir(parents=True, exist_ok=True)
    log = home() / "server.log"
    url = f"http://{HOST}:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with log.open("w") as output:
        process = start(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_up(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"the Prefect server did not start; it said:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url
    finally:
        stop(process)


def ensure_server(module: str) -> None:
    """Returns when a Prefect server is running; else runs `python -m module` on one that lives as long, and exits."""
    set_environment()
    if running_server():
        return
    print("No Prefect server is running: starting one for this run.", flush=True)
    with server(free_port()) as url:
        process = start([sys.executable, "-m", module, *sys.argv[1:]], env={**os.environ, "PREFECT_API_URL": url})
        try:
            code = process.wait()
        finally:
            stop(process)
    sys.exit(code)
