"""What people are told at once, and what starts by itself when queries drift: a real Prefect server and a webhook."""

import json
import os
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from clip_core.guard import free_port
from flows.alerts import EVENTS, WEBHOOK
from flows.server import as_client, server
from tests.conftest import ENVIRONMENT, ROOT, run_in
from tests.prefect_api import ask, until

# As the platform does at each start: the second time in place of the first.
DEPLOY = "import os; from flows import alerts; [alerts.deploy(os.environ[alerts.WEBHOOK]) for _ in range(2)]"
EMIT = """
from prefect.events import emit_event
emit_event("clip.drifted", {"prefect.resource.id": "clip.release.1"}, payload={"told": "another kind"})
"""


class Alerted(NamedTuple):
    api: str
    told: list[str]


@pytest.fixture(scope="module")
def alerted(tmp_path_factory: pytest.TempPathFactory) -> Generator[Alerted]:
    """A Prefect server with the project's deployments, and what its webhook was told."""
    told = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with pytest.MonkeyPatch.context() as patch, ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as webhook:
        thread = threading.Thread(target=webhook.serve_forever)
        thread.start()
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with server(free_port()) as api:
            mine = as_client(api) | {WEBHOOK: f"http://127.0.0.1:{webhook.server_port}/secret"}
            for name, value in (mine | {"PREFECT_HOME": os.environ["PREFECT_HOME"], "CLIP_PROJECT": str(ROOT)}).items():
                patch.setitem(ENVIRONMENT, name, value)
            prefect = (sys.executable, "-m", "prefect")
            run_in(ROOT, *prefect, "work-pool", "create", "--type", "process", "clip")
            run_in(ROOT, *prefect, "--no-prompt", "deploy", "--name", "nightly")
            run_in(ROOT, sys.executable, "-c", DEPLOY)
            yield Alerted(api, told)
        webhook.shutdown()
        thread.join()


def test_a_drift_is_told_and_starts_the_nightly(alerted: Alerted) -> None:
    run_in(ROOT, sys.executable, "-c", EMIT)
    until(lambda: "clip: drifted\nanother kind" in alerted.told)
    (deployment,) = ask(alerted.api, "deployments/filter")
    started = until(lambda: [run for run in runs(alerted.api) if not run["auto_scheduled"]])
    assert [run["deployment_id"] for run in started] == [deployment["id"]]


@pytest.mark.parametrize(
    ("kind", "state", "name"),
    [
        ("failed", "FAILED", "Failed"),
        ("failed", "CRASHED", "Crashed"),
        ("late", "SCHEDULED", "Late"),
        ("refused", "FAILED", "Refused"),
    ],
)
def test_a_run_that_fails_is_late_or_refuses_is_told_with_its_reason(
    kind: str, state: str, name: str, alerted: Alerted
) -> None:
    (deployment,) = ask(alerted.api, "deployments/filter")
    run = ask(alerted.api, f"deployments/{deployment['id']}/create_flow_run", state={"type": "SCHEDULED"})
    because = {"type": state, "name": name, "message": f"because of {name}"}
    ask(alerted.api, f"flow_runs/{run['id']}/set_state", state=because, force=True)
    until(lambda: any(text.startswith(f"clip: {kind}\nnightly, run {run['name']}, is {name}") for text in alerted.told))
    (text,) = [text for text in alerted.told if run["name"] in text]  # once, though deployed twice
    assert text.endswith(f"because of {name}")


def test_every_kind_has_one_automation(alerted: Alerted) -> None:
    names = [one["name"] for one in ask(alerted.api, "automations/filter")]
    assert sorted(names) == sorted([*(f"clip: {kind}" for kind in EVENTS), "nightly when queries drift"])


def runs(api: str) -> list[dict]:
    return ask(api, "flow_runs/filter")
