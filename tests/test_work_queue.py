"""The deployments that train wait for each other: they have one queue, out of which one run goes at a time."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.guard import free_port
from tests.conftest import ENVIRONMENT, ROOT
from tests.prefect_api import ask, flow_runs, processes_in, until
from tests.toy_pipeline import new_toy_of_one_stage


@pytest.mark.slow
def test_a_finetune_waits_until_the_nightly_has_ended(tmp_path: Path) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    (toy / "letters.in").write_text("wait")
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    (toy / "prefect.yaml").write_text(re.sub(r"    schedules:\n( {6}.*\n)+", "", text))  # only what is asked for
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    port, log = free_port(), toy / "platform.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "flows.platform", "--port", str(port)]
        platform = subprocess.Popen(command, cwd=toy, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(lambda: "Prefect is up" in log.read_text() or platform.poll() is not None)
        assert platform.poll() is None, log.read_text()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_HOME", str(toy / ".prefect"))
            url = f"http://127.0.0.1:{port}/api"
            deployments = {one["name"]: one["id"] for one in ask(url, "deployments/filter")}
            ask(url, f"deployments/{deployments['nightly']}/create_flow_run")
            until((toy / "pid").exists)
            asked = {"recipes": ["nothing"]}
            second = ask(url, f"deployments/{deployments['finetune']}/create_flow_run", parameters=asked)["id"]
            until(lambda: state_of(url, second)["name"] == "Late")  # it would have begun
            (toy / "go").touch()
            until(lambda: state_of(url, second)["name"] == "Refused")
    finally:
        platform.send_signal(signal.SIGINT)
        assert platform.wait(120) == 0
    until(lambda: not processes_in(toy))


def state_of(url: str, run: str) -> dict:
    return next(one["state"] for one in flow_runs(url) if one["id"] == run)
