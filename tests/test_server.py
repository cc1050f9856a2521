"""The record of a running platform is believed only where that platform answers."""

import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from clip_core.locks import signature
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
    (home() / "running").write_text(f"{url} {signature()}")
    assert running_server() == url


@pytest.mark.parametrize("record", ["", "{url}", "{url} 4x"])
def test_half_a_record_is_no_platform(record: str, url: str) -> None:
    (home() / "running").write_text(record.format(url=url))
    assert running_server() is None


def test_a_process_that_has_the_number_of_a_platform_that_was_killed_is_no_platform(url: str) -> None:
    number, _, start = signature().partition("@")
    (home() / "running").write_text(f"{url} {number}@{int(start) - 1}")
    assert running_server() is None


def test_a_process_gone_is_no_platform(url: str) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    (home() / "running").write_text(f"{url} {gone.pid}")
    assert running_server() is None
