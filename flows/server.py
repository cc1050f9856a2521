"""The project's own Prefect server: on loopback, its state in `.prefect`, open to who knows the secret there.

It runs what it is told to, and any page in the user's browser can send it requests.
"""

import itertools
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import replacing_file
from clip_core.guard import free_port, start, stop
from clip_core.locks import is_alive, signature, try_lock
from clip_core.project import project_root
from flows.database import check_database

HOST = "127.0.0.1"
PATIENCE = 120  # seconds for the server to come up; 6 to 17 on two quiet cores
SAY_EVERY = 60  # seconds


def set_environment() -> None:
    """Keeps Prefect's state in the project and says where that is; what the user has set stays."""
    set_switches()
    root = project_root().absolute()
    os.environ.setdefault("PREFECT_HOME", str(root / ".prefect"))
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")  # else a mistyped address starts a server
    # By default leases are forgotten when the server stops, and the slot of a run it was in is never free again.
    os.environ["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] = "prefect.server.concurrency.lease_storage.filesystem"
    os.environ["CLIP_PROJECT"] = str(root)  # the working directory of deployed flows, see prefect.yaml
    if not os.environ.get("PREFECT_API_URL") and (url := running_server()):
        os.environ.update(as_client(url))


def home() -> Path:
    return Path(os.environ["PREFECT_HOME"])


def as_client(url: str) -> dict[str, str]:
    """The environment of a Prefect client of the project's own server at `url`."""
    return {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": secret()}


def secret_file() -> Path:
    return home() / "secret"


def secret() -> str:
    return secret_file().read_text(encoding="utf-8").strip()


def make_secret() -> None:
    """Makes the project's secret, unless it has one; at no moment can another user read it."""
    if not secret_file().exists() or not secret():  # with an empty one Prefect lets everybody in
        with replacing_file(secret_file()) as aside:
            aside.touch(mode=0o600)
            aside.write_text(f"prefect:{secrets.token_urlsafe(32)}\n", encoding="utf-8")


def closed(port: int) -> dict[str, str]:
    """Of a server that hears only who knows the secret, and whose answers are for no page but its own."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": secret(),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",  # else the page tells the secret to port 4200
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
    }


def running_server() -> str | None:
    """The API address of the server that the user named, or of the project's own where one answers."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    with suppress(OSError, ValueError):  # no file or half a one
        url, platform = (home() / "running").read_text(encoding="utf-8").split()
        # a killed platform leaves the file, and its port may be another project's by now
        return url if is_alive(platform) and is_up(url) else None
    return None


def is_up(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        return answer.status == 200
    return False


class Occupied(UserError):
    """Another process has its Prefect server on this project's database."""

    def __init__(self, pid: str, command: str) -> None:
        self.holder = f"process {pid} ({command})"
        super().__init__(
            f"{self.holder} has a Prefect server on {home()}, and two would spoil its database. "
            f"Use that one, wait for its end, or stop it: kill {pid}"
        )


@contextmanager
def only_server() -> Generator[int]:
    """Keeps every other server off the database; gives the descriptor of the lock, which whoever has it holds.

    Raises Occupied where a living process holds it; waits for the server of a killed one, which is about to end.
    """
    home().mkdir(parents=True, exist_ok=True)
    home().chmod(0o700)
    lock = os.open(home() / "server.lock", os.O_RDWR | os.O_CREAT)
    try:
        while not try_lock(lock):
            holder, _, command = os.pread(lock, 1000, 0).decode(errors="replace").partition("\n")[0].partition(" ")
            if is_alive(holder):
                raise Occupied(holder.partition("@")[0], command)
            time.sleep(0.5)
        os.pwrite(lock, f"{signature()} {' '.join(sys.argv)}\n".encode(), 0)  # what follows it is of a longer one
        yield lock
    finally:
        os.close(lock)


def check_port(port: int) -> None:
    """Raises UserError when something listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UserError(f"port {port} is in use. Free it, or choose another one: --port {port + 1}") from None


@contextmanager
def server(port: int) -> Generator[str]:
    """A Prefect server with its UI on loopback; gives its API address and stops it afterwards.

    A server that is killed, as by a system short of memory, is started again: runs go on meanwhile.
    """
    with only_server() as lock:
        check_port(port)
        check_database()
        make_secret()
        print("Starting a Prefect server ...", flush=True)
        log = home() / "server.log"
        url = f"http://{HOST}:{port}/api"
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
        forever = 'trap exit INT TERM; while "$@"; [ $? -gt 128 ]; do sleep 1; done'  # 128 + the signal that killed it
        environment = {**os.environ, **closed(port)}
        shell = ["/bin/sh", "-c", forever, "sh", *command]
        with log.open("w", encoding="utf-8") as output:
            # the guard has the lock, too: it outlives us until the server has ended
            process = start(shell, env=environment, stdout=output, stderr=subprocess.STDOUT, pass_fds=(lock,))
        try:
            deadline = time.monotonic() + PATIENCE
            while not is_up(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise UserError(f"the Prefect server did not start; it said:\n{said}")
                time.sleep(0.5)
            yield url
        finally:
            stop(process)


@told_to_the_user()
def ensure_server(module: str) -> None:
    """Returns when a Prefect server is running; else runs `python -m module` on one that lives as long, and exits."""
    for seconds in itertools.count():
        set_environment()
        if running_server():
            return
        try:
            with server(free_port()) as url:
                sys.exit(run_on(url, module))
        except Occupied as other:  # by a platform that is starting, or by another flow for itself
            if seconds % SAY_EVERY == 0:
                print(f"Waiting for {other.holder}, which has a Prefect server on {home()}", flush=True)
        time.sleep(1)


def run_on(url: str, module: str) -> int:
    """The exit code of `python -m module`, with our arguments, on the server at `url`."""
    process = start([sys.executable, "-m", module, *sys.argv[1:]], env={**os.environ, **as_client(url)})
    try:
        return process.wait()
    finally:
        stop(process)
