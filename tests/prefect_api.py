"""Questions to a Prefect server over its REST API, and to the kernel about processes, for tests."""

import base64
import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpx

from flows.server import secret

JSON = {"Content-Type": "application/json"}
PATIENCE = 600  # seconds; a busy machine is slow
T = TypeVar("T")


def ask(url: str, path: str, **body: object) -> Any:
    """What the server at `url`, whose PREFECT_HOME is ours, answers to `POST path`."""
    for patience in (1, 2, 4, 8, 0):
        answer = send(url, path, JSON | authentic(secret()) | with_token(url, secret()), body)
        if answer.status_code == 403:  # a token holds for an hour
            with_token.cache_clear()
        elif answer.status_code != 503:  # its database is locked for a moment
            break
        time.sleep(patience)
    return answer.raise_for_status().json()


def send(url: str, path: str, headers: dict[str, str], body: object = None, method: str = "POST") -> httpx.Response:
    """What the server at `url` answers."""
    content = None if body is None else json.dumps(body)
    return httpx.request(method, f"{url}/{path}", headers=headers, content=content, timeout=30, trust_env=False)


def authentic(secret: str) -> dict[str, str]:
    """The header of who says that this is the server's secret."""
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}


@cache
def with_token(url: str, secret: str) -> dict[str, str]:
    """The headers of who has asked for a token before."""
    answer = send(url, "csrf-token?client=tests", authentic(secret), method="GET").raise_for_status()
    return {"Prefect-Csrf-Client": "tests", "Prefect-Csrf-Token": answer.json()["token"]}


def flow_runs(url: str) -> list[dict]:
    """The server's flow runs, the newest first."""
    return ask(url, "flow_runs/filter", sort="EXPECTED_START_TIME_DESC")


def asked_for(url: str) -> list[dict]:
    """The flow runs but for those that the nightly's own schedule makes."""
    return [run for run in flow_runs(url) if not run["auto_scheduled"]]


def stage_states(url: str, flow_run: dict) -> dict[str, str]:
    """Stage -> the name of its task's state."""
    tasks = ask(url, "task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
    return {task["name"].rpartition("-")[0]: task["state_name"] for task in tasks}


def log(url: str, flow_run: dict) -> str:
    """The log of a flow run with its tasks."""
    lines = ask(url, "logs/filter", logs={"flow_run_id": {"any_": [flow_run["id"]]}}, sort="TIMESTAMP_ASC")
    return "\n".join(line["message"] for line in lines)


def commands() -> dict[int, list[str]]:
    """The processes of this machine, with their command lines."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone by now
            found[int(process.name)] = (process / "cmdline").read_text(errors="replace").split("\0")
    return found


def processes_in(folder: Path) -> dict[int, list[str]]:
    """The processes whose working directory is `folder`, with their command lines."""

    def is_there(pid: int) -> bool:
        with suppress(OSError):  # another user's, or gone by now
            return Path(f"/proc/{pid}/cwd").readlink() == folder.resolve()
        return False

    return {pid: command for pid, command in commands().items() if is_there(pid)}


def until(condition: Callable[[], T], every: float = 0.5, patience: float = PATIENCE) -> T:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + patience
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)
    return answer
