"""The project works without a network and tells nobody what it does."""

import re
import sys
from pathlib import Path

import pytest

from clip_core.env import SWITCHES
from tests.conftest import ROOT, run_in, without_network
from tests.prefect_api import processes_in

# What a user has running in other terminals, and then the commands that talk to it; Ctrl-C ends it.
SERVICES = """
set -e
python -m clip_core.serve.releases add models/release
python -m clip_core.serve.gateway > serve.log 2>&1 & serve=$!
python -m flows.platform > platform.log 2>&1 & platform=$!
trap 'kill -INT $serve $platform; cat serve.log platform.log' ERR
until grep -q "the page:" serve.log && grep -q "Prefect is up" platform.log; do
    kill -0 $serve; kill -0 $platform; sleep 0.2
done
python -m clip_core.serve.client 一只猫
python -m flows.rollout forward
export PREFECT_HOME=$PWD/.prefect
python -c "from tests.prefect_api import ask; print(ask('http://127.0.0.1:4200/api', 'deployments/filter'))"
kill -INT $serve $platform
wait $serve
wait $platform
"""

needs_namespaces = pytest.mark.skipif(
    not without_network(), reason="this kernel does not let a user make a network namespace (unshare -rn)"
)


@needs_namespaces
def test_names_cannot_be_resolved_where_these_tests_run() -> None:
    lookup = "import socket; socket.getaddrinfo('example.org', 443)"
    assert "gaierror" in run_in(ROOT, *without_network(), sys.executable, "-c", lookup, check=False).stdout


@needs_namespaces
def test_the_whole_pipeline_ran_without_a_network(smoke_project: Path) -> None:
    log = (smoke_project / ".work" / "repro.log").read_text()  # the fixture ran it so
    assert "Running stage 'ingest'" in log
    assert "Running stage 'report'" in log
    assert (smoke_project / "reports" / "report.html").exists()


@needs_namespaces
@pytest.mark.parametrize(
    "command",
    [
        ("dvc", "repro"),
        ("dvc", "metrics", "show"),
        ("dvc", "plots", "show"),
        (sys.executable, "-m", "flows.pipeline"),
        (sys.executable, "-c", "import clip_core; clip_core.load('models/stage2').encode_texts(['一只猫'])"),
    ],
    ids=lambda command: " ".join(command[-2:]),
)
def test_a_main_command_works_without_a_network(command: tuple[str, ...], project_copy: Path) -> None:
    run_in(project_copy, *without_network(), *command)


@needs_namespaces
def test_serving_the_platform_and_a_rollout_work_without_a_network(project_copy: Path) -> None:
    output = run_in(project_copy, *without_network(), "bash", "-c", SERVICES).stdout
    assert len(re.findall(r"^[\d.-]+ +\d+ %  twemoji-", output, re.MULTILINE)) == 5  # the client's hits
    assert re.search(r"^release [0-9a-f]{16} serves already$", output, re.MULTILINE)
    assert "No Prefect server is running" not in output  # the rollout has found the platform
    assert "'name': 'nightly'" in output
    assert not processes_in(project_copy)


def test_dvc_tells_nobody(smoke_project: Path) -> None:
    assert run_in(smoke_project, "dvc", "config", "core.analytics").stdout.strip() == "false"
    assert run_in(smoke_project, "dvc", "config", "core.check_update").stdout.strip() == "false"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from clip_core import env

    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    env.set_switches()
    assert env.os.environ["HF_HUB_OFFLINE"] == "0"
    assert env.os.environ["DO_NOT_TRACK"] == "1"
