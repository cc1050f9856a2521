"""Questions to a Prefect server over its REST API, and to the kernel about processes, for tests."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

PATIENCE = 600  # seconds; a busy machine is slow
T = TypeVar("T")


def ask(url: str, path: str, **body: object) -> Any:
    """What the server at `url` answers to `POST path`."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/{path}", data, {"Content-Type": "application/json"})
    for patience in (1, 2, 4, 8, 0):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or not patience:  # its database is locked for a moment
                raise
            time.sleep(patience)
    raise AssertionError("not reached")


def flow_runs(url: str) -> list[dict]:
    """The server's flow runs, the newest first."""
    return ask(url, "flow_runs/filter", sort="EXPECTED_START_TIME_DESC")


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


def until(condition: Callable[[], T], every: float = 0.5) -> T:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)
    return answer
