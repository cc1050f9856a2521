"""A local Triton server on loopback: started, waited for and stopped, with nothing left behind."""

import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clip_core.errors import UserError
from clip_core.guard import free_port, start, stop
from clip_core.serve.install import PACKAGES, PROJECT, is_installed, libpython_folder, triton_home

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

READY_SECONDS = 120  # models of a few GB load in a minute
LOG_TAIL = 3000  # characters of the log that an error shows


class Server(NamedTuple):
    address: str  # host:port of gRPC, the only protocol that is open
    repository: Path  # the model repository that it serves
    log: Path


@contextmanager
def triton_server(repository: Path, models: list[str], log: Path) -> Generator[Server]:
    """A Triton server of `repository` with `models` loaded and ready; it is gone when the block ends.

    Models are loaded and unloaded on request only (explicit control). HTTP stays closed: a body of nested brackets
    crashes this server.
    """
    server, process, prefix = _start(repository, models, log)
    try:
        yield server
    finally:
        stop(process)
        left = shared_memory(prefix)
        assert not left, f"Triton left shared memory behind: {left}"


def shared_memory(prefix: str) -> list[str]:
    """The names of the shared memory segments that begin with `prefix`."""
    return sorted(path.name for path in Path("/dev/shm").glob(f"{prefix}*"))


def connect(address: str) -> "InferenceServerClient":
    """A gRPC client of the Triton server at `address`; ValueError when none answers there."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    client = InferenceServerClient(address)
    try:
        client.is_server_live(client_timeout=10)
    except InferenceServerException as error:
        raise UserError(f"no Triton server answers at {address} ({error.message()}); `make serve` starts one") from None
    return client


def check_server(repository: Path) -> Path:
    """Where the Triton server is installed; ValueError when it is not, or when it could not read `repository`."""
    home = triton_home()
    if not is_installed(home):
        raise UserError(f"{home}: no Triton server for this Python there; run `make setup`")
    for folder in (repository.absolute(), PROJECT, home):
        if not str(folder).isascii():  # its Python takes no locale from the environment
            raise UserError(f"{folder}: Triton 2.51 reads ASCII paths alone; use folders with such names")
    return home


def _start(repository: Path, models: list[str], log: Path) -> tuple[Server, subprocess.Popen, str]:
    home = check_server(repository)
    for _ in range(3):  # between finding a free port and taking it, another process may take it
        prefix = f"clip-{os.getpid()}-{secrets.token_hex(4)}-"
        port = free_port()
        with log.open("w", encoding="utf-8") as output:
            process = start(
                _command(home, repository.absolute(), models, port, prefix),
                shared_memory=prefix,
                cwd=PROJECT,  # the stubs import clip_core from here
                env=_environment(home),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_until_ready(f"127.0.0.1:{port}", process, log)
            return Server(f"127.0.0.1:{port}", repository, log), process, prefix
        except ValueError:
            stop(process)
            if "address already in use" not in log.read_text(encoding="utf-8", errors="replace").lower():
                raise
        except BaseException:  # Ctrl-C while the models load
            stop(process)
            raise
    raise UserError("no free port on loopback after three tries")


def _command(home: Path, repository: Path, models: list[str], port: int, prefix: str) -> list[str]:
    server = home / "environment" / PACKAGES / "pytriton" / "tritonserver"
    return [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}",
        f"--cache-directory={server / 'caches'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--model-config-name=cpu_python",  # <model>/configs/cpu_python.pbtxt where there is one
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        "--allow-http=false",
        "--allow-metrics=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
        "--model-load-thread-count=2",
        "--exit-timeout-secs=10",
        "--disable-auto-complete-config",
    ]


def _environment(home: Path) -> dict[str, str]:
    environment = home / "environment"
    keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return keep | {
        # The stub takes its packages from the first python3 on PATH.
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": f"{environment / PACKAGES / 'nvidia_pytriton.libs'}{os.pathsep}{libpython_folder()}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _wait_until_ready(address: str, process: subprocess.Popen, log: Path) -> None:
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    client = InferenceServerClient(address)
    deadline = time.monotonic() + READY_SECONDS
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise UserError(f"Triton ended while loading (exit {process.returncode}).\n{_explain(log)}")
            try:
                if client.is_server_ready(client_timeout=5):
                    return
            except InferenceServerException:
                pass
            time.sleep(0.1)
    finally:
        client.close()
    raise UserError(f"Triton was not ready within {READY_SECONDS} s.\n{_explain(log)}")


def _explain(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    remedy = ""
    if re.search(r"shared memory|shm", text, re.IGNORECASE) and shutil.disk_usage("/dev/shm").free < 32 * 2**20:
        remedy = "\n/dev/shm is nearly full; in a container: --shm-size=1g"
    return f"The end of its log ({log}):\n{text[-LOG_TAIL:]}{remedy}"
