"""The deployments that train wait for each other: they have one queue, out of which one run goes at a time."""

from pathlib import Path

import pytest

from tests.prefect_api import ask, flow_runs, until
from tests.toy_pipeline import new_toy_of_one_stage
from tests.toy_platform import deployments, platform


@pytest.mark.slow
def test_a_finetune_waits_until_the_nightly_has_ended(tmp_path: Path) -> None:
    toy = new_toy_of_one_stage(tmp_path)
    (toy / "letters.in").write_text("wait")
    deployments(toy, "nightly", "finetune")
    with platform(toy) as url:
        ids = {one["name"]: one["id"] for one in ask(url, "deployments/filter")}
        ask(url, f"deployments/{ids['nightly']}/create_flow_run")
        until((toy / "pid").exists)
        asked = {"recipes": ["nothing"]}
        second = ask(url, f"deployments/{ids['finetune']}/create_flow_run", parameters=asked)["id"]
        until(lambda: state_of(url, second)["name"] == "Late")  # it would have begun
        (toy / "go").touch()
        until(lambda: state_of(url, second)["name"] == "Refused")


def state_of(url: str, run: str) -> dict:
    return next(one["state"] for one in flow_runs(url) if one["id"] == run)
