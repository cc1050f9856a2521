"""Who may ask the gateway, where it listens, and what it notes: keys, their limits, doors, figures and logs."""

import argparse
import base64
import json
import logging
import re
import ssl
import sys
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from clip_core.errors import UserError
from clip_core.serve import keys as keys_module
from clip_core.serve.app import HOST_NAMES
from clip_core.serve.door import add_arguments, door_of, listen, url_of
from clip_core.serve.keys import Keys, add_key, read_keys
from clip_core.serve.logs import JsonLines
from tests.conftest import ROOT, run_in
from tests.page_server import Supervised, page_of
from tests.served import of, serving
from tests.tiny_release import Release


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def alice(file: Path) -> str:
    """The key of alice, who may ask 600 times a minute."""
    return add_key(file, "alice", 600)


@pytest.fixture
def page(alice: str, file: Path, tmp_path: Path) -> Generator[httpx.Client]:
    with page_of(Supervised(""), tmp_path, keys=Keys(file)) as client:
        yield client


def basic(key: str) -> str:
    return f"Basic {base64.b64encode(f'any:{key}'.encode()).decode()}"


def test_only_who_has_a_key_is_answered_but_probes_are(page: httpx.Client, alice: str) -> None:
    for authorization in (f"Bearer {alice}", f"bearer {alice}", basic(alice)):
        assert page.get("/", headers={"Authorization": authorization}).status_code == 200
    for authorization in ("", f"Bearer {alice}x", f"Bearer {alice[:-1]}", "Bearer", "Basic !", basic(""), alice[5:]):
        for path in ("/", "/metrics", "/openapi.json", "/v1/models", "/images/a/b/c", "/api/search?text=x"):
            answer = page.get(path, headers={"Authorization": authorization})
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")  # a browser asks its user
    assert (page.get("/livez").status_code, page.get("/readyz").status_code) == (200, 503)
    assert page.post("/v1/search", json={}).json()["error"]["type"] == "key"


def test_the_file_holds_no_key_and_a_new_key_of_a_name_ends_the_old_one(file: Path, alice: str) -> None:
    bob, keys = add_key(file, "bob", 60), Keys(file)
    assert (keys.owner(f"Bearer {alice}"), keys.owner(f"Bearer {bob}")) == ("alice", "bob")
    assert not {alice, alice[5:]} & set(file.read_text(encoding="utf-8").split('"'))
    newer = add_key(file, "alice", 60)  # while it is in use
    assert (keys.owner(f"Bearer {alice}"), keys.owner(f"Bearer {newer}")) == (None, "alice")


def test_every_key_is_compared_in_full_whichever_fits(file: Path, alice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(file, "bob", 60)
    compared: list[str] = []

    def compare(given: str, known: str, really=keys_module.hmac.compare_digest) -> bool:
        compared.append(known)
        return really(given, known)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    Keys(file).owner(f"Bearer {alice}")
    assert compared == [key.sha256 for key in read_keys(file).values()]


def test_a_file_that_becomes_unreadable_leaves_the_keys_as_they_were(
    file: Path, alice: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(file)
    for content in ("{", '{"alice": {"sha256": "short", "per_minute": 1}}', None):
        file.unlink() if content is None else file.write_text(content, encoding="utf-8")
        assert keys.owner(f"Bearer {alice}") == "alice"
    assert len([record for record in caplog.records if "the keys stay what they were" in record.message]) == 3
    with pytest.raises(UserError, match=r"keys.json: can not be read \(No such file or directory\); `python -m"):
        Keys(file)
    file.write_text('{"Alice!": {"per_minute": 0}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"Alice!.*pattern.*sha256: Field required.*per_minute: .*greater"):
        Keys(file)


def test_a_key_may_be_used_as_often_as_its_file_says(file: Path, alice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(keys_module.time, "monotonic", lambda: now)
    add_key(file, "bob", 60)
    keys = Keys(file)
    assert [keys.wait("bob") for _ in range(12)] == [0.0] * 10 + [1.0, 1.0]  # ten seconds' worth at once
    assert keys.wait("alice") == 0.0  # another key is not held up
    answered = 0
    for _ in range(240):  # a quarter of a second each: 60 seconds
        now += 0.25
        answered += keys.wait("bob") == 0.0
    assert answered == 60


def test_who_asks_too_often_is_told_how_long_to_wait(file: Path, tmp_path: Path) -> None:
    key = add_key(file, "slow", 6)
    with page_of(Supervised(""), tmp_path, keys=Keys(file)) as page:
        ours = {"Authorization": f"Bearer {key}"}
        assert page.get("/v1/models", headers=ours).status_code == 200
        answer = page.get("/v1/models", headers=ours)
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "limit")
        assert answer.headers["Retry-After"] == "10"
        assert page.get("/", headers=ours).json()["error"] == "the key 'slow' may be used 6 times a minute"


def test_the_command_prints_the_key_once(file: Path) -> None:
    key = run_in(ROOT, sys.executable, "-m", "clip_core.serve.keys", str(file), "carol", "--per-minute", "5").stdout
    assert Keys(file).owner(f"Bearer {key.strip()}") == "carol"
    assert read_keys(file)["carol"].per_minute == 5
    refused = run_in(ROOT, sys.executable, "-m", "clip_core.serve.keys", str(file), "Carol", check=False)
    assert (refused.returncode, "small letters" in refused.stdout) == (2, True)


def test_the_command_replaces_a_key_only_where_it_is_told_to(file: Path, alice: str) -> None:
    command = [sys.executable, "-m", "clip_core.serve.keys", str(file), "alice"]
    refused = run_in(ROOT, *command, check=False)
    assert refused.returncode == 2
    assert refused.stdout == (
        f"error: {file}: alice has a key, for 600 requests a minute; with --replace that ends, and a new one is made\n"
    )
    assert Keys(file).owner(f"Bearer {alice}") == "alice"
    newer = run_in(ROOT, *command, "--replace", "--per-minute", "5").stdout.strip()
    assert Keys(file).owner(f"Bearer {newer}") == "alice" and read_keys(file)["alice"].per_minute == 5


# Doors.


def door(*arguments: str):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return door_of(parser.parse_args(arguments))


def test_a_door_to_all_needs_keys(file: Path, alice: str) -> None:
    assert (door().host, door().port, door().keys) == ("127.0.0.1", 8000, None)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(UserError, match=rf"--host {host}: whoever reaches it.*--keys keys.json"):
            door("--host", host)
    with pytest.raises(UserError, match="--host localhost: an address is wanted"):
        door("--host", "localhost")
    opened = door("--host", "0.0.0.0", "--port", "0", "--keys", str(file), "--name", "Search.example")
    assert opened.names == ("0.0.0.0", "search.example")
    with listen(opened) as listener:
        assert url_of(opened, listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost that it has signed itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2")
    run_in(folder, *new, *names, "-out", str(cert), "-keyout", str(key))
    return cert, key


def test_files_that_are_no_certificate_with_its_key_are_refused(certificate: tuple[Path, Path], file: Path) -> None:
    cert, key = certificate
    for arguments, said in (
        (("--tls-cert", str(cert)), f"--tls-cert {cert}, --tls-key None: HTTPS needs both files"),
        (("--tls-key", str(key)), "HTTPS needs both files"),
        (("--tls-cert", str(key), "--tls-key", str(cert)), f"--tls-key {cert}: no certificate with its key, as PEM"),
        (("--tls-cert", str(cert), "--tls-key", str(file)), "No such file"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            door(*arguments)


def test_with_a_certificate_it_speaks_https_alone(
    certificate: tuple[Path, Path], release: Release, tmp_path: Path
) -> None:
    cert, key = certificate
    with serving(tmp_path, *of(tmp_path / "serving", release), "--tls-cert", str(cert), "--tls-key", str(key)) as (
        url,
        _,
    ):
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=url, verify=context, trust_env=False, timeout=60) as client:
            assert client.post("/v1/search", json={"text": "猫"}, headers={"Origin": url}).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"), trust_env=False)
        asked = [sys.executable, "-m", "clip_core.serve.client", "猫", "--serving", str(tmp_path / "serving")]
        assert "certificate verify failed" in run_in(ROOT, *asked, check=False).stdout
        assert run_in(ROOT, "env", f"SSL_CERT_FILE={cert}", *asked).returncode == 0


def test_what_looks_after_servers_asks_by_any_name(tmp_path: Path) -> None:
    with page_of(Supervised(""), tmp_path) as page:
        for path, status in (("/livez", 200), ("/readyz", 503), ("/metrics", 421)):
            assert page.get(path, headers={"Host": "10.1.2.3:8000"}).status_code == status
    with page_of(Supervised(""), tmp_path, host_names=(*HOST_NAMES, "10.1.2.3")) as page:
        assert page.get("/metrics", headers={"Host": "10.1.2.3:8000"}).status_code == 200


# Figures and logs.


def test_the_figures_say_who_asked_what_and_which_models_answer(page: httpx.Client, alice: str) -> None:
    ours = {"Authorization": f"Bearer {alice}"}
    page.get("/v1/models", headers=ours)
    page.get("/images/x/y/z", headers=ours)
    page.get("/images/x/y/other", headers=ours)
    page.get("/nowhere", headers=ours)
    page.get("/v1/models")
    answer = page.get("/metrics", headers=ours)
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    lines = set(answer.text.splitlines())
    requests = "clip_gateway_requests_total"
    assert {
        f'{requests}{{key="alice",route="/v1/models",status="200"}} 1.0',
        f'{requests}{{key="",route="none",status="401"}} 1.0',
        f'{requests}{{key="alice",route="none",status="404"}} 1.0',
        f'{requests}{{key="alice",route="/images/{{release}}/{{gallery}}/{{image_id:path}}",status="404"}} 2.0',
        'clip_gateway_request_seconds_count{route="/v1/models"} 1.0',
        'clip_gateway_model_ready{model="clip_text"} 1.0',
        "clip_gateway_running 0.0",
    } <= lines, answer.text


def test_a_request_is_a_line_of_json_without_what_was_asked(
    page: httpx.Client, alice: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clip_core")
    headers = {"Authorization": f"Bearer {alice}", "X-Request-Id": "from-the-balancer.1"}
    assert page.get("/api/search?text=secret", headers=headers).headers["X-Request-Id"] == "from-the-balancer.1"
    assert page.get("/livez", headers={"X-Request-Id": "no\tid {}"}).headers["X-Request-Id"].isalnum()
    deadline = time.monotonic() + 5
    while len(lines := [record for record in caplog.records if record.message == "request"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    line = json.loads(JsonLines().format(lines[0]))
    assert line.pop("milliseconds") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "clip_core.serve.metrics",
        "message": "request",
        "id": "from-the-balancer.1",
        "key": "alice",
        "method": "GET",
        "path": "/api/search",
        "status": 503,
    }


def test_a_failure_is_one_line_with_its_traceback() -> None:
    try:
        raise ValueError("by mistake:\n猫")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "request %s failed", ("7f",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line and "猫" in line
    assert json.loads(line)["message"] == "request 7f failed"
    assert json.loads(line)["traceback"].endswith("ValueError: by mistake:\n猫")
