"""Rollout on a live Triton: clients under load see no failed and no mixed answer, whatever is rolled out."""

import subprocess
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from clip_core.serve import live, releases
from clip_core.serve.assemble import PUBLIC
from clip_core.serve.golden import WrongAnswers, probe, read_golden
from clip_core.serve.queries import encode_texts, search
from clip_core.serve.rollout import roll_back, roll_out
from clip_core.serve.supervisor import Supervisor
from clip_core.serve.triton import Triton, connect
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny_release import Release
from tests.under_load import Clients, changed, make_fickle, server_of, shuffle, supervised


@pytest.fixture(scope="module")
def running(tiny_releases: tuple[Release, Release], tmp_path_factory: pytest.TempPathFactory) -> Generator[Supervisor]:
    """A server that the tests of this file may change."""
    with supervised(tmp_path_factory.mktemp("rollout") / "serving", *tiny_releases) as supervisor:
        yield supervisor


def command(running: Supervisor, *arguments: str, module: str = "clip_core.serve.rollout") -> tuple[int, str]:
    """The exit code and the output of the command."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--serving", str(running.serving.absolute())],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return result.returncode, result.stdout


def serving_now(running: Supervisor) -> str:
    """The release that serves, on which the folder and Triton agree, and no other is loaded."""
    with closing(Triton(server_of(running))) as triton:
        public = live.public_release(triton)
        loaded = {name.rpartition("_")[2] for name, state in triton.states().items() if state == "READY"}
        answers = search(triton.client, ["红色"])[0].release
    assert public == answers == releases.current(running.serving)
    assert loaded - {name.removeprefix("clip_") for name in PUBLIC} == {public}
    assert {path.name.rpartition("_")[2] for path in server_of(running).live.iterdir()} == loaded
    return public


def version_of(running: Supervisor) -> int:
    with closing(connect(running.address)) as client:
        (version,) = client.get_model_metadata("clip_search").versions
    return int(version)


def test_a_good_release_takes_over_unnoticed_and_a_rollback_brings_the_old_one_back(
    running: Supervisor, tiny_releases: tuple[Release, Release]
) -> None:
    first, second = tiny_releases
    assert serving_now(running) == first.id
    versions = [version_of(running)]
    for arguments, before, after in (((second.id,), first, second), (("--back",), second, first)):
        with Clients(server_of(running), tiny_releases) as clients:
            code, said = command(running, *arguments)
        assert code == 0, said
        assert f"release {after.id} serves" in said
        assert (clients.failed, clients.mixed) == ([], [])
        assert (clients.answers[0], clients.answers[-1]) == (before.id, after.id)
        changes = [a for a, b in zip(clients.answers, clients.answers[1:], strict=False) if a != b]
        assert len(changes) < 6  # three clients go over once; their last answers may be noted a little late
        assert serving_now(running) == after.id
        with closing(connect(running.address)) as client:
            features = encode_texts(client, first.truth.texts[:2])
        np.testing.assert_allclose(features, after.truth.text_features[:2], atol=1e-5)
        versions.append(version_of(running))
    assert versions == sorted(set(versions))  # none is used again


@pytest.mark.parametrize("fault", [shuffle, make_fickle], ids=["at once", "once it is public"])
def test_a_release_that_answers_wrongly_is_refused_and_the_old_one_serves_on(
    fault, running: Supervisor, tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    serving = serving_now(running)
    (other,) = (one for one in tiny_releases if one.id != serving)
    wrong = changed(other, tmp_path / "wrong", fault)
    releases.add(running.serving, wrong.folder, keep=None)
    with Clients(server_of(running), (*tiny_releases, wrong)) as clients:
        code, said = command(running, wrong.id)
    assert code == 2, said
    assert "answers golden queries wrongly" in said
    assert (clients.failed, clients.mixed) == ([], [])
    assert clients.answers[-1] == serving
    assert fault is make_fickle or set(clients.answers) == {serving}
    assert serving_now(running) == serving
    assert [event.event for event in releases.history(running.serving) if event.release == wrong.id][-1] == "failed"


def test_a_release_that_does_not_load_is_refused_and_unloaded(
    running: Supervisor, tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    serving = serving_now(running)
    broken = changed(
        tiny_releases[1],
        tmp_path / "broken",
        lambda folder: (folder / "models/text_core/1/model.onnx").write_bytes(b"nothing"),
    )
    releases.add(running.serving, broken.folder, keep=None)
    with (
        Clients(server_of(running), tiny_releases) as clients,
        pytest.raises(ValueError, match=f"Triton can not load text_core_{broken.id}"),
    ):
        roll_out(running.serving, broken.id)
    assert clients.failed == []
    assert serving_now(running) == serving


def test_a_release_whose_files_are_not_those_that_were_proved_is_refused(
    running: Supervisor, tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    serving = serving_now(running)
    (other,) = (one for one in tiny_releases if one.id != serving)
    damaged = changed(other, tmp_path / "damaged", shuffle)
    place = releases.folder_of(running.serving, damaged.id)
    releases.add(running.serving, damaged.folder, keep=None)
    file = place / "models/text_core/1/model.onnx"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(bytes([*data[:-1], data[-1] ^ 1]))
    code, said = command(running, damaged.id)
    assert code == 2
    assert (
        f"not the release {damaged.id} that was proved: missing, new or changed: models/text_core/1/model.onnx" in said
    )
    assert serving_now(running) == serving
    assert command(running, "0123456789abcdef")[0] == 2


def test_a_score_that_is_no_number_is_a_wrong_answer(running: Supervisor) -> None:
    release = serving_now(running)
    golden = read_golden(releases.folder_of(running.serving, release) / "golden")
    rankings = golden.rankings["test"]
    no_numbers = dict.fromkeys(rankings[-1], float("nan"))
    wrong = golden._replace(rankings={"test": [*rankings[:-1], no_numbers]})
    with closing(connect(running.address)) as client, pytest.raises(WrongAnswers, match="scores differ by nan"):
        probe(client, wrong, release)


def test_one_rollout_at_a_time(running: Supervisor, tiny_releases: tuple[Release, Release]) -> None:
    with (
        releases.only_rollout(running.serving),
        pytest.raises(ValueError, match="another rollout is running"),
    ):
        roll_out(running.serving, tiny_releases[1].id)


@pytest.mark.slow
def test_the_flow_rolls_out_with_every_step_a_task(
    running: Supervisor, tiny_releases: tuple[Release, Release], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_core.guard import free_port
    from flows.server import as_client, server

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    serving = serving_now(running)
    (other,) = (one for one in tiny_releases if one.id != serving)
    with server(free_port()) as url:
        for name, value in (as_client(url) | {"PREFECT_HOME": str(tmp_path)}).items():
            monkeypatch.setitem(ENVIRONMENT, name, value)
        code, said = command(running, "forward", "--release", other.id, module="flows.rollout")
        assert code == 0, said
        assert serving_now(running) == other.id
        steps = ("verify", "settle", "load", "probe", "publish", "probe public", "make current", "unload")
        assert [step for step in steps if f"Task run '{step}" not in said] == []


def test_without_a_server_a_rollout_decides_what_the_next_start_serves(
    tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    first, second = tiny_releases
    serving = tmp_path / "serving"
    for release in tiny_releases:
        releases.add(serving, release.folder, keep=None)
    roll_out(serving, second.id)
    with supervised(serving) as running:
        assert serving_now(running) == second.id
    roll_back(serving)  # as after a reboot
    with supervised(serving) as running:
        assert serving_now(running) == first.id
