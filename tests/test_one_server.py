"""At most one Prefect server at a time has the project's database, whoever starts them and however they end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clip_core.guard import free_port
from tests.conftest import ENVIRONMENT, ROOT
from tests.prefect_api import asked_for, processes_in, until
from tests.toy_pipeline import new_toy_of_one_stage

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect"))  # for what the test itself asks a server
    toy = new_toy_of_one_stage(tmp_path)
    (toy / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    return toy


@pytest.fixture
def start(toy: Path) -> Iterator[Start]:
    """Starts `python -m MODULE ...` in the toy; what it says goes to the file NAME.txt."""
    processes = []

    def start(name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (toy / f"{name}.txt").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=toy,
                env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.terminate()
        process.wait()
    until(lambda: not processes_in(toy))


def said(toy: Path, name: str) -> str:
    return (toy / f"{name}.txt").read_text()


def test_of_two_platforms_started_at_once_one_is_refused_with_the_other_s_name_and_the_remedy(
    toy: Path, start: Start
) -> None:
    both = {name: start(name, "flows.platform", "--port", str(free_port())) for name in ("one", "other")}
    refused = until(lambda: [name for name, process in both.items() if process.poll() is not None])[0]
    (holder,) = both.keys() - {refused}
    assert both[refused].returncode == 2
    assert f"process {both[holder].pid} (" in said(toy, refused)
    assert f"stop it: kill {both[holder].pid}" in said(toy, refused)
    until(lambda: "Prefect is up" in said(toy, holder) or both[holder].poll() is not None)
    assert both[holder].poll() is None, said(toy, holder)


@pytest.mark.slow
def test_a_flow_that_finds_a_platform_starting_waits_for_it_and_uses_it(toy: Path, start: Start) -> None:
    port = free_port()
    platform = start("platform", "flows.platform", "--port", str(port))
    until(lambda: "Starting" in said(toy, "platform"))
    flow = start("flow", "flows.pipeline")
    assert flow.wait(120) == 0, said(toy, "flow")
    assert f"Waiting for process {platform.pid} (" in said(toy, "flow")
    assert len(asked_for(f"http://127.0.0.1:{port}/api")) == 1


@pytest.mark.slow
def test_while_a_flow_has_its_own_server_a_flow_waits_and_a_platform_is_refused_until_it_is_killed(
    toy: Path, start: Start
) -> None:
    (toy / "letters.in").write_text("wait")
    holder = start("holder", "flows.pipeline")
    until(lambda: (toy / "pid").exists())
    waiting = start("waiting", "flows.pipeline")
    until(lambda: f"Waiting for process {holder.pid} (" in said(toy, "waiting"))
    platform = start("platform", "flows.platform", "--port", str(free_port()))
    assert platform.wait(60) == 2
    assert f"process {holder.pid} (" in said(toy, "platform")

    (toy / "go").touch()  # of which the holder's stage learns no more
    os.kill(holder.pid, signal.SIGKILL)
    assert waiting.wait(120) == 0, said(toy, "waiting")
