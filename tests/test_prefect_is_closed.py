"""Nobody but the user has the platform run anything, least of all a page that is open in the user's browser."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from websockets import Subprotocol
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from clip_core.guard import free_port
from flows.server import as_client, make_secret, secret, secret_file, set_environment
from tests.conftest import ENVIRONMENT, ROOT
from tests.prefect_api import JSON, ask, asked_for, authentic, flow_runs, log, processes_in, send, until, with_token
from tests.toy_pipeline import new_toy_of_one_stage

PAGE = {"Origin": "http://attacker.example"}
ID = "00000000-0000-4000-8000-000000000000"
DVC_YAML = "stages: {letters: {cmd: 'env > letters.out', outs: [letters.out]}}\n"


@dataclass(frozen=True)
class Platform:
    project: Path
    url: str
    said: str

    @property
    def nightly(self) -> str:
        """What schedules a run of the deployment."""
        (deployment,) = [each for each in ask(self.url, "deployments/filter") if each["name"] == "nightly"]
        return f"deployments/{deployment['id']}/create_flow_run"

    def status(self, path: str, headers: dict[str, str]) -> int:
        """Of the answer to `POST path`."""
        return send(self.url, path, headers, {}).status_code


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Generator[Platform]:
    """`python -m flows.platform` on a pipeline whose one stage writes down its environment."""
    toy = new_toy_of_one_stage(tmp_path_factory.mktemp("toy"))
    (toy / "dvc.yaml").write_text(DVC_YAML)
    (toy / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    port, said = free_port(), toy / "platform.txt"
    with said.open("w") as output, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(toy / ".prefect"))
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.platform", "--port", str(port)],
            cwd=toy,
            env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            until(lambda: "Prefect is up" in said.read_text() or process.poll() is not None)
            assert process.poll() is None, said.read_text()
            yield Platform(toy, f"http://127.0.0.1:{port}/api", said.read_text())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    until(lambda: not processes_in(toy))


@pytest.mark.parametrize("kind", [{}, {"Content-Type": "text/plain"}, JSON])  # for the last alone a browser asks first
def test_a_page_schedules_nothing_whatever_kind_of_request_it_sends(kind: dict[str, str], platform: Platform) -> None:
    before = asked_for(platform.url)
    assert platform.status(platform.nightly, PAGE | kind) in (401, 403)
    assert asked_for(platform.url) == before


@pytest.mark.parametrize("claim", [{}, authentic("prefect:guessed"), authentic(":"), {"Authorization": "Bearer x"}])
def test_without_the_secret_nothing_is_told_and_nothing_is_scheduled(claim: dict, platform: Platform) -> None:
    headers = JSON | with_token(platform.url, secret()) | claim
    assert send(platform.url, "csrf-token?client=page", claim, method="GET").status_code == 401
    assert platform.status("deployments/filter", headers) == 401
    assert platform.status(platform.nightly, headers) == 401
    assert platform.status("deployments/", headers) == 401


def test_with_the_secret_but_no_token_nothing_is_scheduled(platform: Platform) -> None:
    headers = JSON | authentic(secret())
    guessed = with_token(platform.url, secret()) | {"Prefect-Csrf-Token": "guessed"}
    assert platform.status(platform.nightly, headers) == 403
    assert platform.status(platform.nightly, headers | guessed) == 403


@pytest.mark.parametrize("origin", ["http://attacker.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_may_neither_send_nor_read(origin: str, platform: Platform) -> None:
    for asked in (before_sending(platform, origin), send(platform.url, "health", {"Origin": origin}, method="GET")):
        assert "Access-Control-Allow-Origin" not in asked.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_platform_s_own_page_may(host: str, platform: Platform) -> None:
    origin = platform.url.removesuffix("/api").replace("127.0.0.1", host)
    answer = before_sending(platform, origin)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert {"authorization", "prefect-csrf-token"} <= set(answer.headers["Access-Control-Allow-Headers"].split(", "))


def test_the_platform_s_own_page_tells_the_secret_to_no_other_server(platform: Platform) -> None:
    page = send(platform.url.removesuffix("/api"), "ui-settings", {}, method="GET").json()
    assert (page["api_url"], page["auth"]) == (platform.url, "BASIC")


def before_sending(platform: Platform, origin: str) -> httpx.Response:
    """What the server answers a browser that asks whether a page of `origin` may schedule a run."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, prefect-csrf-token",
    }
    return send(platform.url, platform.nightly, headers, method="OPTIONS")


@pytest.mark.parametrize("token", [None, "prefect:guessed"])
def test_no_event_is_taken_from_a_page(token: str | None, platform: Platform) -> None:
    url = f"{platform.url.replace('http', 'ws')}/events/in"  # which a browser lets any page open
    event = {"event": "page", "resource": {"prefect.resource.id": "page"}, "occurred": "2030-01-01T00:00:00Z", "id": ID}
    message = {"type": "auth", "token": token} if token else event
    protocols = [Subprotocol("prefect")] if token else None
    with pytest.raises(WebSocketException), connect(url, additional_headers=PAGE, subprotocols=protocols) as socket:
        socket.send(json.dumps(message))
        socket.recv(timeout=2)


def test_the_secret_is_in_a_file_for_the_user_s_eyes_and_on_no_command_line(platform: Platform) -> None:
    assert secret_file().stat().st_mode & 0o777 == 0o600
    assert secret_file().parent.stat().st_mode & 0o777 == 0o700
    password = secret().partition(":")[2]
    assert len(password) > 30
    commands = processes_in(platform.project)
    assert len(commands) > 3  # platform, server, worker
    assert not [command for command in commands.values() if password in " ".join(command)]
    assert str(secret_file()) in platform.said
    assert password not in platform.said + (secret_file().parent / "server.log").read_text()


def test_the_user_s_own_run_works_and_its_stage_sees_nothing_of_the_secret(platform: Platform) -> None:
    run = ask(platform.url, platform.nightly, state={"type": "SCHEDULED"})
    ended = until(lambda: [each for each in flow_runs(platform.url) if each["id"] == run["id"] and each["end_time"]])
    assert ended[0]["state_type"] == "COMPLETED", log(platform.url, run)
    seen = (platform.project / "letters.out").read_text()
    assert "DVC_STAGE=letters" in seen
    assert secret().partition(":")[2] not in seen
    assert "PREFECT_" not in seen


def test_a_secret_is_private_before_there_is_one_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    seen = []

    def watched(path: Path, text: str, **options: str) -> None:
        seen.append(path.stat().st_mode & 0o777)
        write_text(path, text, **options)

    write_text = Path.write_text
    monkeypatch.setattr(Path, "write_text", watched)
    before = os.umask(0)
    try:
        make_secret()
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert secret_file().stat().st_mode & 0o777 == 0o600
    first = secret()
    make_secret()
    assert secret() == first
    secret_file().write_text("\n")  # which would let everybody in
    make_secret()
    assert len(secret()) > 30


def test_with_a_server_of_the_user_s_own_the_password_stays_the_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    make_secret()
    monkeypatch.setattr(os, "environ", as_client("https://prefect.example/api") | {"PREFECT_HOME": str(tmp_path)})
    os.environ["PREFECT_API_AUTH_STRING"] = "me:mine"
    set_environment()
    assert os.environ["PREFECT_API_AUTH_STRING"] == "me:mine"
    assert os.environ["PREFECT_API_URL"] == "https://prefect.example/api"
