"""The project works without a network and tells nobody what it does."""

import sys
from pathlib import Path

import pytest

from clip_core.env import SWITCHES
from tests.conftest import ROOT, run_in, without_network

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
