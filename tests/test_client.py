"""`make serve` and the command line client: what they print, refuse and leave behind."""

import json
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from clip_core.project import MARKS
from clip_core.serve import releases
from clip_core.serve.triton import shared_memory
from tests.conftest import ENVIRONMENT, ROOT
from tests.served import of, serving
from tests.tiny_release import TOP_K, Release, processes_that_name


@pytest.fixture(scope="module")
def served(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A folder in which a gateway runs."""
    folder = tmp_path_factory.mktemp("serve")
    with serving(folder, *of(folder / "serving", release)):
        yield folder


def ask(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "clip_core.serve.client", *arguments)


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    for mark in MARKS:  # which make the folder a project
        (folder / mark).touch()
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_client_prints_the_top_hits(served: Path, release: Release) -> None:
    result = ask(served, release.truth.texts[0], "--top", "3")
    assert result.returncode == 0, result.stderr
    scores = release.truth.image_features @ release.truth.text_features[0]
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [float(score) for score, *_ in rows] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-3)
    assert all(image_id in release.truth.image_ids for _, image_id, _ in rows)


def test_the_client_says_when_the_release_gives_fewer_than_asked(served: Path, release: Release) -> None:
    result = ask(served, release.truth.texts[0], "--top", "50")
    assert len(result.stdout.splitlines()) == TOP_K
    assert f"the release finds {TOP_K} pictures a text: index.top_k" in result.stderr


def test_the_client_says_why_a_text_is_refused(served: Path) -> None:
    result = ask(served, "  ")
    assert result.returncode == 2
    assert result.stderr == "error: item 0: the text is empty\n"
    assert "top: Input should be less than or equal to 100" in ask(served, "猫", "--top", "1000").stderr


def test_without_a_server_the_client_says_how_to_start_one(tmp_path: Path) -> None:
    assert "serving: no server runs; start one in another terminal: `make serve`" in ask(tmp_path, "猫").stderr
    result = ask(tmp_path, "猫", "--url", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert "no server answers at http://127.0.0.1:9" in result.stderr


def test_the_client_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, clip_core.serve.client; print({'torch', 'numpy', 'tritonclient'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_at_a_terminal_the_page_is_opened_in_the_browser(release: Release, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    with serving(tmp_path, *of(tmp_path / "serving", release), channel=pty.openpty) as (url, _):
        deadline = time.monotonic() + 60
        while not (opened.exists() and opened.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert opened.read_text() == f"{url}\n"


def test_the_user_may_want_no_browser(release: Release, tmp_path: Path) -> None:
    with serving(tmp_path, *of(tmp_path / "serving", release), "--no-browser", channel=pty.openpty):
        assert ask(tmp_path, release.truth.texts[0]).returncode == 0
    assert not (tmp_path / "opened").exists()


def test_without_a_terminal_no_browser_is_opened(served: Path, release: Release) -> None:
    assert ask(served, release.truth.texts[0]).returncode == 0
    assert not (served / "opened").exists()


def test_a_second_server_of_the_folder_is_refused_by_the_address_of_the_first_wherever_it_is_started(
    served: Path, tmp_path: Path
) -> None:
    url = json.loads((served / "serving" / "running.json").read_text())["url"]
    for folder, serving_folder in ((served, "serving"), (tmp_path, str(served / "serving"))):
        result = run(folder, "clip_core.serve.gateway", "--port", "0", "--serving", serving_folder)
        assert result.returncode == 2
        assert f"{served}/serving: another `make serve` serves from this folder: {url}" in result.stderr


def test_a_second_server_is_refused_also_while_the_first_is_starting(release: Release, tmp_path: Path) -> None:
    arguments = of(tmp_path / "serving", release)
    with releases.only_gateway(tmp_path / "serving"):
        result = run(tmp_path, "clip_core.serve.gateway", "--port", "0", *arguments)
    assert result.stderr.endswith("serves from this folder: it is starting and will name its page\n")


def test_where_it_is_and_its_key_are_for_this_user_alone(served: Path) -> None:
    assert (served / "serving" / "running.json").stat().st_mode & 0o777 == 0o600


def test_a_port_in_use_is_named_with_the_remedy(release: Release, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run(tmp_path, "clip_core.serve.gateway", "--port", str(port), *of(tmp_path / "serving", release))
    assert result.returncode == 2
    assert f"port {port} can not be used" in result.stderr
    assert f"--port {port + 1}" in result.stderr


def test_without_a_release_the_gateway_says_what_makes_one(tmp_path: Path) -> None:
    result = run(tmp_path, "clip_core.serve.gateway")
    assert result.returncode == 2
    assert "serving: no release to serve yet; `make run` makes that of the pipeline" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_ending_it_leaves_nothing_running(number: signal.Signals, release: Release, tmp_path: Path) -> None:
    with serving(tmp_path, *of(tmp_path / "serving", release)) as (_, process):
        assert processes_that_name(str(tmp_path / "serving" / "live"))
        assert shared_memory(f"clip-{process.pid}-")
        process.send_signal(number)
        assert process.wait(60) == 0
    assert not processes_that_name(str(tmp_path))
    assert not shared_memory(f"clip-{process.pid}-")
    assert not (tmp_path / "serving" / "running.json").exists()
    assert not (tmp_path / "serving" / "live").exists()
    assert releases.current(tmp_path / "serving") == release.id


LOST_SIGNAL = """
import os, signal
from clip_core.serve import gateway

class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def start(supervisor, started=gateway.Supervisor.start):
    started(supervisor)
    Callback()

gateway.Supervisor.start = start
gateway.main()
"""


def test_a_signal_whose_exception_python_loses_ends_it_as_well(release: Release, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOST_SIGNAL, "--port", "0", *of(tmp_path / "serving", release)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    )
    assert "Exception ignored in" in result.stderr
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "stopped")
