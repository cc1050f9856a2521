"""The record of a running platform is believed only where that platform answers."""

import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flows.server import HOST, home, running_server


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of something that answers as a healthy Prefect server does."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with HTTPServer((HOST, 0), Healthy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}/api"
        server.shutdown()


def test_a_platform_that_answers_is_running(url: str) -> None:
    assert running_server() is None
    (home() / "running").write_text(f"{url} {os.getpid()}")
    assert running_server() == url


@pytest.mark.parametrize("record", ["", "{url}", "{url} 4x"])
def test_half_a_record_is_no_platform(record: str, url: str) -> None:
    (home() / "running").write_text(record.format(url=url))
    assert running_server() is None


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_a_process_gone_or_not_ours_is_no_platform(
    error: type[OSError], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(process: int, number: int) -> None:
        raise error

    (home() / "running").write_text(f"{url} 1")
    monkeypatch.setattr(os, "kill", kill)
    assert running_server() is None
