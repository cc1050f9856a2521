"""Rollout on a live Triton: clients under load see no failed and no mixed answer, whatever is rolled out."""

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_core.serve import release as releases
from clip_core.serve.golden import GOLDEN_FOLDER, WrongAnswers, probe, read_golden
from clip_core.serve.queries import encode_texts, search
from clip_core.serve.triton import Server, connect, triton_server
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny_release import Release


@pytest.fixture(scope="module")
def live(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """A server that the tests of this file may change."""
    folder = tmp_path_factory.mktemp("rollout")
    models = releases.new_live_repository(release.repository, folder / "live")
    with triton_server(folder / "live", models, folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    from clip_core.guard import free_port
    from flows.server import server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with server(free_port()) as url:
            yield url


class Clients:
    """Threads that search all the time, and what they saw."""

    def __init__(self, server: Server, known: tuple[Release, ...]) -> None:
        self.server = server
        self.text = known[0].truth.texts[3]
        self.true_scores = {one.truth.release: dict(zip(*scores_of(one, self.text), strict=True)) for one in known}
        self.answers: list[str] = []
        self.failed: list[str] = []
        self.mixed: list[str] = []
        self.slowest = 0.0
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(3)]

    def _ask(self) -> None:
        with closing(connect(self.server.address)) as client:
            while not self.stopped.is_set():
                started = time.perf_counter()
                try:
                    (found,) = search(client, [self.text])
                except Exception as error:  # any failure counts
                    self.failed.append(str(error))
                    continue
                self.slowest = max(self.slowest, time.perf_counter() - started)
                self.answers.append(found.release)
                true = self.true_scores.get(found.release, {})
                if any(
                    abs(true.get(name, 9) - score) > 1e-4 for name, score in zip(found.ids, found.scores, strict=True)
                ):
                    self.mixed.append(found.release)

    def __enter__(self) -> "Clients":
        for thread in self.threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.5)
        self.stopped.set()
        for thread in self.threads:
            thread.join()


def scores_of(release: Release, text: str) -> tuple[list[str], list[float]]:
    truth = release.truth
    return list(truth.image_ids), (truth.image_features @ truth.text_features[truth.texts.index(text)]).tolist()


def roll_out(repository: Path, live: Server, api: str) -> tuple[int, str]:
    """The exit code and the output of `python -m flows.rollout`."""
    arguments = ["--repository", str(repository), "--triton", live.address, "--live", str(live.repository)]
    result = subprocess.run(
        [sys.executable, "-m", "flows.rollout", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | {"PREFECT_API_URL": api, "PREFECT_HOME": str(live.log.parent)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return result.returncode, result.stdout


def shuffled(release: Release, folder: Path) -> Path:
    """The release with its pictures' names in another order: it loads, but answers wrongly."""
    shutil.copytree(release.repository, folder)
    file = folder / "clip_search" / "1" / "image_ids.json"
    image_ids = json.loads(file.read_text())
    file.write_text(json.dumps([image_ids[place] for place in np.random.default_rng(1).permutation(len(image_ids))]))
    return folder


def fickle(release: Release, folder: Path) -> Path:
    """The release with a fault: the golden queries, which come together, are answered rightly once and then wrongly."""
    shutil.copytree(release.repository, folder)
    with (folder / "clip_search" / "1" / "model.py").open("a") as code:
        code.write(f"PROBED = {str(folder / 'probed')!r}\n{FICKLE}")
    return folder


FICKLE = """
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        right = self.image_ids
        if pb.get_input_tensor_by_name(request, "TEXT").as_numpy().size > 1:
            if Path(PROBED).exists():
                self.image_ids = np.roll(right, 1)
            Path(PROBED).touch()
        try:
            return super().execute([request])[0]
        finally:
            self.image_ids = right
"""


def test_a_good_release_takes_over_unnoticed(
    live: Server, tiny_releases: tuple[Release, Release], prefect_api: str
) -> None:
    first, second = tiny_releases
    before = releases.published(live.repository)
    with Clients(live, tiny_releases) as clients:
        code, said = roll_out(second.repository, live, prefect_api)
    assert code == 0, said
    assert clients.failed == []
    assert clients.mixed == []
    assert clients.answers[0] == first.truth.release
    assert clients.answers[-1] == second.truth.release
    changes = [a for a, b in zip(clients.answers, clients.answers[1:], strict=False) if a != b]
    assert len(changes) < 6  # three clients go over once; their last answers may be noted a little late
    assert releases.published(live.repository) == before + 1
    assert releases.releases_in(live.repository) == [before + 1]  # the old one is retired
    with closing(connect(live.address)) as client:
        version = client.get_model_metadata("clip_search").versions
        features = encode_texts(client, first.truth.texts[:2])
    assert list(version) == [str(before + 1)]
    np.testing.assert_allclose(features, second.truth.text_features[:2], atol=1e-5)


def test_a_release_with_a_shuffled_index_is_refused_and_the_old_one_stays(
    live: Server, tiny_releases: tuple[Release, Release], prefect_api: str, tmp_path: Path
) -> None:
    before = releases.published(live.repository)
    with closing(connect(live.address)) as client:
        serving = search(client, ["红色"])[0].release
    broken = shuffled(tiny_releases[0], tmp_path / "broken")
    with Clients(live, tiny_releases) as clients:
        code, said = roll_out(broken, live, prefect_api)
    assert code == 2
    assert "answers golden queries wrongly" in said
    assert clients.failed == []
    assert clients.mixed == []
    assert set(clients.answers) == {serving}
    assert releases.published(live.repository) == before
    assert releases.releases_in(live.repository) == [before]


def test_a_release_that_answers_wrongly_once_it_is_public_is_rolled_back(
    live: Server, tiny_releases: tuple[Release, Release], prefect_api: str, tmp_path: Path
) -> None:
    before = releases.published(live.repository)
    with closing(connect(live.address)) as client:
        serving = search(client, ["红色"])[0].release
    (other,) = (one for one in tiny_releases if one.truth.release != serving)
    with Clients(live, tiny_releases) as clients:
        code, said = roll_out(fickle(other, tmp_path / "fickle"), live, prefect_api)
    assert code == 2, said
    assert "answers golden queries wrongly" in said
    assert "roll_back" in said
    assert clients.failed == []
    assert clients.mixed == []
    assert clients.answers[-1] == serving
    assert releases.published(live.repository) == before
    assert releases.releases_in(live.repository) == [before]
    with closing(connect(live.address)) as client:
        releases.probe_public(client, live.repository)


def test_a_release_that_does_not_load_is_refused_and_removed(live: Server, release: Release, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(release.repository, broken)
    (broken / "text_core" / "1" / "model.onnx").write_bytes(b"nothing")
    before = releases.releases_in(live.repository)
    with (
        Clients(live, (release,)) as clients,
        closing(connect(live.address)) as client,
        pytest.raises(ValueError, match="Triton can not load text_core_r"),
    ):
        releases.stage(client, broken, live.repository)
    assert clients.failed == []
    assert releases.releases_in(live.repository) == before


def test_what_a_killed_rollout_left_is_no_hindrance(live: Server, tiny_releases: tuple[Release, Release]) -> None:
    before = releases.published(live.repository)
    serving, other = tiny_releases
    with Clients(live, tiny_releases) as clients, closing(connect(live.address)) as client:
        killed = releases.stage(client, other.repository, live.repository)  # loaded, but no more
        shutil.copytree(other.repository / "text_core", live.repository / f"text_core_r{killed + 1}")  # half a copy
        number = releases.stage(client, serving.repository, live.repository)
        releases.probe_release(client, live.repository, number)
        left = releases.releases_in(live.repository)
        releases.retire(client, live.repository, number)
    assert left == [before, number]
    assert clients.failed == []
    assert releases.releases_in(live.repository) == [before]


def test_a_full_disk_leaves_nothing_of_the_new_release(
    live: Server, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = releases.releases_in(live.repository)
    copy = shutil.copytree

    def fill(source: Path, target: Path, *options: Any) -> None:
        if source.name == "image_core":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        copy(source, target, *options)

    monkeypatch.setattr(shutil, "copytree", fill)
    with closing(connect(live.address)) as client, pytest.raises(OSError, match="No space left"):
        releases.stage(client, release.repository, live.repository)
    assert releases.releases_in(live.repository) == before


def test_rolling_back_after_publishing_goes_unnoticed_too(live: Server, tiny_releases: tuple[Release, Release]) -> None:
    before = releases.published(live.repository)
    other = tiny_releases[0]
    with Clients(live, tiny_releases) as clients, closing(connect(live.address)) as client:
        number = releases.stage(client, other.repository, live.repository)
        assert releases.publish(client, live.repository, number) == before
        releases.probe_public(client, live.repository)
        time.sleep(0.3)
        releases.publish(client, live.repository, before)
        releases.probe_public(client, live.repository)
        releases.retire(client, live.repository, number)
    assert clients.failed == []
    assert clients.mixed == []
    assert releases.published(live.repository) == before


def test_a_score_that_is_no_number_is_a_wrong_answer(live: Server) -> None:
    golden = read_golden(live.repository / f"clip_search_r{releases.published(live.repository)}" / GOLDEN_FOLDER)
    no_numbers = dict.fromkeys(golden.rankings[-1], float("nan"))
    with closing(connect(live.address)) as client, pytest.raises(WrongAnswers, match="scores differ by nan"):
        probe(client, golden._replace(rankings=[*golden.rankings[:-1], no_numbers]))


def test_the_published_release_is_not_retired(live: Server) -> None:
    with closing(connect(live.address)) as client, pytest.raises(ValueError, match="is published; publish another"):
        releases.retire(client, live.repository, releases.published(live.repository))


def test_one_rollout_at_a_time(live: Server) -> None:
    with (
        releases.one_rollout_at_a_time(live.repository),
        pytest.raises(ValueError, match="another rollout is running"),
        releases.one_rollout_at_a_time(live.repository),
    ):
        pass


def test_a_release_without_golden_queries_is_not_rolled_out(live: Server, release: Release, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(release.repository, silent)
    shutil.rmtree(silent / "clip_search" / "golden")
    with (
        closing(connect(live.address)) as client,
        pytest.raises(ValueError, match="a release without golden queries is not served"),
    ):
        releases.stage(client, silent, live.repository)
