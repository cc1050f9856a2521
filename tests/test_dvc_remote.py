"""Machines share results through a remote of DVC's: what one has made no other makes again; a real Prefect server."""

from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, run_in
from tests.prefect_api import ask, flow_runs, stage_states
from tests.ssh_server import ssh_server
from tests.test_s3 import KEY, SECRET, server  # noqa: F401 (a fixture)
from tests.toy_pipeline import DVC_YAML, new_toy, outcomes, run_flow, runs

SHARING = (
    "-c",
    "import asyncio; from flows.pipeline import pipeline; "
    "state = asyncio.run(pipeline(seconds_before_retry=0.1, remote='team', return_state=True)); "
    "print(state.name, state.message)",
)
STAGES = ("letters", "words@long")


@pytest.fixture
def machines(tmp_path: Path) -> list[Path]:
    """Two clones of a repository of two stages, of which the second has a metric that git keeps."""
    origin = tmp_path / "origin"
    origin.mkdir()
    new_toy(origin)
    pipeline = DVC_YAML.partition("  book:")[0].replace("[long, short]", "[long]")
    (origin / "dvc.yaml").write_text(pipeline)
    run_in(origin, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qam", "two stages")
    for name in ("one", "two"):
        run_in(tmp_path, "git", "clone", "-q", str(origin), name)
    return [tmp_path / "one", tmp_path / "two"]


def has_what_the_other_made(one: Path, two: Path) -> bool:
    made = ("letters.out", "words-long.out", "words-long.json", "dvc.lock")
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in made)


def test_a_remote_that_is_away_fails_the_run_that_keeps_its_results_and_once_it_is_back_no_machine_repeats_them(
    machines: list[Path], tmp_path: Path, api: str
) -> None:
    one, two = machines
    for machine in machines:
        run_in(machine, "dvc", "remote", "add", "--local", "team", str(tmp_path / "remote"))
    _, output = run_flow(one, api, *SHARING)
    assert f"remote team: {tmp_path / 'remote'} is not there; mount it" in output
    assert "Failed remote team: fetch failed, and what is made here stays here" in output
    assert outcomes(output) == dict.fromkeys(STAGES, "Ran") and runs(one) == ["letters", "words-long"]
    tasks = ask(api, "task_runs/filter", flow_runs={"id": {"any_": [flow_runs(api)[0]["id"]]}})
    assert [task["run_count"] for task in tasks if "team" in task["name"]] == [4, 4]

    (tmp_path / "remote").mkdir()
    _, output = run_flow(one, api, *SHARING)
    assert "Completed" in output and runs(one) == []
    _, output = run_flow(two, api, *SHARING)
    assert outcomes(output) == dict.fromkeys(STAGES, "Cached") and runs(two) == []
    assert has_what_the_other_made(one, two)
    assert stage_states(api, flow_runs(api)[0])["push team"] == "Exchanged"


@pytest.mark.slow
def test_they_share_through_an_s3_server(
    machines: list[Path],
    api: str,
    server: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = machines
    monkeypatch.setitem(ENVIRONMENT, "AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setitem(ENVIRONMENT, "AWS_SECRET_ACCESS_KEY", SECRET)
    for machine in machines:
        run_in(machine, "dvc", "remote", "add", "--local", "team", "s3://remote/clip")
        run_in(machine, "dvc", "remote", "modify", "--local", "team", "endpointurl", server)
    the_second_machine_runs_nothing(one, two, api)


@pytest.mark.slow
def test_they_share_over_ssh(machines: list[Path], api: str, tmp_path: Path) -> None:
    with ssh_server(tmp_path) as (port, key):
        for machine in machines:
            run_in(machine, "dvc", "remote", "add", "--local", "team", f"ssh://127.0.0.1:{port}{tmp_path / 'remote'}")
            run_in(machine, "dvc", "remote", "modify", "--local", "team", "keyfile", str(key))
        the_second_machine_runs_nothing(*machines, api)
    assert any((tmp_path / "remote").rglob("*"))


def the_second_machine_runs_nothing(one: Path, two: Path, api: str) -> None:
    for machine, made in ((one, "Ran"), (two, "Cached")):
        _, output = run_flow(machine, api, *SHARING)
        assert "Completed" in output and outcomes(output) == dict.fromkeys(STAGES, made)
    assert runs(two) == [] and has_what_the_other_made(one, two)
