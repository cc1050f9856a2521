"""A local Triton server on loopback: started, waited for and stopped, with nothing left behind."""

import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clip_core.errors import UserError
from clip_core.guard import free_port, start, stop
from clip_core.serve.install import PACKAGES, is_installed, libpython_folder, triton_home

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

READY_SECONDS = 60  # of a server without models: tenths of a second on a quiet machine
LOAD_SECONDS = 300  # models of a few GB load in a minute
UNLOAD_SECONDS = 60
CALL_SECONDS = 10
KEY_HEADER = "clip-admin"
RESTRICTED = "model-repository,shared-memory,trace,logging"  # what can run code as us, or read what others ask
LOG_TAIL = 3000  # characters of the log that an error shows


class Server(NamedTuple):
    """A running Triton server."""

    address: str  # host:port of gRPC, the only protocol that is open
    key: str  # without it Triton neither loads nor unloads models for anybody
    live: Path  # the model repository that it serves
    log: Path
    shared_memory: str  # how the names of its segments begin


class Triton:
    """A client of a Triton server with the right to change what it serves; no call waits for ever."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = connect(server.address)
        self._options: dict[str, Any] = {"headers": {f"triton-grpc-protocol-{KEY_HEADER}": server.key}}

    def close(self) -> None:
        self.client.close()

    def load(self, model: str) -> None:
        """Loads the model as its files are now; UserError with Triton's reason when that fails."""
        from tritonclient.utils import InferenceServerException

        try:
            self.client.load_model(model, **self._options, client_timeout=LOAD_SECONDS)
        except InferenceServerException as error:
            raise UserError(f"Triton can not load {model}: {error.message()}") from None
        for segment in shared_memory(self.server.shared_memory):  # its stubs let all read them, whatever the umask says
            with suppress(FileNotFoundError):
                Path("/dev/shm", segment).chmod(0o600)

    def revive(self, model: str) -> None:
        """Loads a model whose process died; the one that died stays UNLOADING in Triton 2.51 for ever, beside it."""
        self.client.unload_model(model, **self._options, client_timeout=CALL_SECONDS)
        self.load(model)

    def unload(self, model: str) -> None:
        """Unloads the model and waits until its last request is answered."""
        self.client.unload_model(model, **self._options, client_timeout=CALL_SECONDS)
        deadline = time.monotonic() + UNLOAD_SECONDS
        while self.states().get(model, "UNAVAILABLE") != "UNAVAILABLE":
            if time.monotonic() > deadline:
                raise UserError(f"Triton did not unload {model} within {UNLOAD_SECONDS} s")
            time.sleep(0.1)

    def states(self) -> dict[str, str]:
        """The models that Triton has seen -> READY, LOADING, UNLOADING or UNAVAILABLE."""
        index = self.client.get_model_repository_index(**self._options, client_timeout=CALL_SECONDS)
        return {entry.name: entry.state or "UNAVAILABLE" for entry in index.models}

    def num_answered(self, model: str) -> int:
        """How many questions the model has answered."""
        found = self.client.get_inference_statistics(model, client_timeout=CALL_SECONDS)
        return sum(one.inference_stats.success.count for one in found.model_stats)

    def config(self, model: str) -> Any:
        """The configuration (a protobuf message) with which Triton serves the model."""
        return self.client.get_model_config(model, client_timeout=CALL_SECONDS).config


@contextmanager
def triton_server(live: Path, log: Path) -> Generator[Server]:
    """A Triton server of the model repository `live`, with no model loaded; it is gone when the block ends.

    Models are loaded and unloaded on request only (explicit control), and by those alone who have the key. HTTP stays
    closed: a body of nested brackets crashes this server.
    """
    running = start_triton(live, log)
    try:
        yield running.server
    finally:
        running.stop()


class RunningTriton(NamedTuple):
    """A Triton server that somebody has to stop."""

    server: Server
    process: subprocess.Popen

    def stop(self) -> None:
        stop(self.process)
        left = shared_memory(self.server.shared_memory)
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
        client.is_server_live(client_timeout=CALL_SECONDS)
    except InferenceServerException as error:
        raise UserError(f"no Triton server answers at {address} ({error.message()}); `make serve` starts one") from None
    return client


def check_server(live: Path) -> Path:
    """Where the Triton server is installed; ValueError when it is not, or when it could not read `live`."""
    home = triton_home()
    if not is_installed(home):
        raise UserError(f"{home}: no Triton server for this Python there; run `python -m clip_core.serve.install`")
    for folder in (live.absolute(), home):
        if not str(folder).isascii():  # its Python takes no locale from the environment
            raise UserError(f"{folder}: Triton 2.51 reads ASCII paths alone; use folders with such names")
    return home


def start_triton(live: Path, log: Path) -> RunningTriton:
    """Starts a Triton server and waits until it answers."""
    home = check_server(live)
    for _ in range(3):  # between finding a free port and taking it, another process may take it
        prefix = f"clip-{os.getpid()}-{secrets.token_hex(4)}-"
        port, key = free_port(), secrets.token_hex(16)
        with log.open("w", encoding="utf-8") as output:
            process = start(
                _command(home, live.absolute(), port, prefix, key),
                shared_memory=prefix,
                cwd=live,  # the stubs look for code here first: a release brings its own
                env=_environment(home),
                stdout=output,
                stderr=subprocess.STDOUT,
                umask=0o077,
            )
        try:
            _wait_until_ready(f"127.0.0.1:{port}", process, log)
            return RunningTriton(Server(f"127.0.0.1:{port}", key, live, log, prefix), process)
        except UserError:
            stop(process)
            if "address already in use" not in log.read_text(encoding="utf-8", errors="replace").lower():
                raise
        except BaseException:  # Ctrl-C
            stop(process)
            raise
    raise UserError("no free port on loopback after three tries")


def _command(home: Path, repository: Path, port: int, prefix: str, key: str) -> list[str]:
    server = home / "environment" / PACKAGES / "pytriton" / "tritonserver"
    return [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--model-config-name=cpu_python",  # <model>/configs/cpu_python.pbtxt where there is one
        "--model-control-mode=explicit",
        f"--grpc-restricted-protocol={RESTRICTED}:{KEY_HEADER}={key}",  # who sees our processes sees it
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
