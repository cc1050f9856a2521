"""An S3-compatible server on loopback."""

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx

from clip_core.guard import free_port
from tests.conftest import ENVIRONMENT
from tests.prefect_api import until

KEY, SECRET = "tests", "a-secret-of-the-tests"


@contextmanager
def s3_server(folder: Path) -> Generator[str]:
    """The address of a server whose buckets are the folders in `folder`; who asks has KEY and SECRET."""
    address = f"127.0.0.1:{free_port()}"
    rclone = Path(sys.executable).parent / "rclone"
    command = [rclone, "serve", "s3", "--addr", address, "--auth-key", f"{KEY},{SECRET}", folder]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return httpx.get(f"http://{address}", trust_env=False).status_code < 500
        except httpx.TransportError:
            return False

    try:
        until(answers, every=0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()
