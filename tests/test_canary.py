"""A canary: the same callers always, given up when it does worse, and made public by a rollout; on a real Triton."""

import threading
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest

from clip_core.config.gateway import CanaryLimits
from clip_core.errors import UserError
from clip_core.serve import live, releases
from clip_core.serve.assemble import PUBLIC
from clip_core.serve.canary import Canary, Fault, Seen
from clip_core.serve.keys import Keys, add_key
from clip_core.serve.rollout import begin_canary, end_canary, roll_out
from clip_core.serve.shapes import MODEL
from clip_core.serve.supervisor import Supervisor
from clip_core.serve.triton import Triton
from tests.page_server import page_of
from tests.tiny_release import Release
from tests.under_load import server_of, supervised

NEW = "fedcba9876543210"
LIMITS = CanaryLimits(window=20, max_more_errors=0.1, max_more_empty=0.1, max_slowdown=2.0)


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    """A folder with a release, as far as a canary looks at it."""
    (tmp_path / "releases" / NEW).mkdir(parents=True)
    (tmp_path / "releases" / NEW / "manifest.json").touch()
    return tmp_path


def begun(serving: Path, share: float, limits: CanaryLimits | None = LIMITS) -> Canary:
    releases.record(serving, "canary", NEW, str(share))
    return Canary(serving, limits)


def aborted(serving: Path) -> list[str]:
    """Why, each time; all that is being written is waited for."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(5)
    return [event.why for event in releases.history(serving) if event.event == "aborted"]


def test_a_share_of_the_callers_is_asked_of_it_and_always_the_same_ones(serving: Path) -> None:
    callers = [f"key-{number}" for number in range(2000)]
    canary = begun(serving, 0.1)
    chosen = {caller for caller in callers if canary.release_for(caller)}
    assert 150 < len(chosen) < 250
    assert chosen == {caller for caller in callers if Canary(serving, LIMITS).release_for(caller)}  # after a restart
    releases.record(serving, "canary", NEW, "0.3")
    assert chosen < {caller for caller in callers if canary.release_for(caller)}
    releases.record(serving, "serves", NEW)  # to all, then
    assert canary.now() is None and not any(map(canary.release_for, callers))


GOOD = Seen(0.01, None)


@pytest.mark.parametrize(
    ("public", "of_canary", "reason"),
    [
        (GOOD, GOOD, None),
        (GOOD, Seen(0.019, None), None),
        (GOOD, Seen(0.021, None), "slow"),
        (GOOD, Seen(0.01, "errors"), "errors"),
        (GOOD, Seen(0.01, "empty"), "empty"),
        (Seen(0.01, "errors"), Seen(0.01, "errors"), None),  # the fault is not the canary's
        (Seen(0.03, None), Seen(0.021, None), None),
    ],
)
def test_it_is_aborted_when_it_does_worse_than_the_public_release(
    public: Seen, of_canary: Seen, reason: str | None, serving: Path
) -> None:
    canary = begun(serving, 0.5)
    for _ in range(30):
        canary.saw("clip_text", None, public)
        canary.saw("clip_text", NEW, of_canary)
    assert (canary.now() is None) == (reason is not None)
    assert dict(canary.num_aborts) == ({reason: 1} if reason else {})
    assert len(aborted(serving)) == len(canary.num_aborts)
    assert releases.refused(serving) == ({NEW} if reason else set())


@pytest.mark.parametrize(("fault", "most"), [("errors", 2), ("empty", 2)])
def test_it_is_aborted_with_the_first_answer_too_many(fault: Fault, most: int, serving: Path) -> None:
    canary = begun(serving, 0.5)
    for _ in range(most):
        canary.saw("clip_text", NEW, Seen(0.01, fault))
        canary.saw("clip_image", NEW, GOOD)
    assert canary.now() is not None
    canary.saw("clip_text", NEW, Seen(0.01, fault))
    assert canary.now() is None
    assert aborted(serving) == [f"clip_text: {fault} in 3 of 3 answers; the public release: 0.0%"]
    releases.record(serving, "canary", NEW, "0.6")  # tried again, it begins anew
    canary.saw("clip_text", NEW, Seen(0.01, fault))
    assert canary.now() is not None


def test_without_limits_it_is_aborted_at_once(serving: Path) -> None:
    assert begun(serving, 0.5, limits=None).release_for("anybody") is None
    assert aborted(serving) == ["the gateway has none; start it with --params params.yaml"]


def test_housekeeping_leaves_a_canary_as_long_as_it_is_one(serving: Path) -> None:
    for release in (NEW, "a" * 16, "b" * 16):
        (serving / "releases" / release).mkdir(exist_ok=True)
        (serving / "releases" / release / "manifest.json").touch()
        releases.record(serving, "added", release)
    begun(serving, 0.5)
    assert releases.unneeded(serving, 1) == ["a" * 16]
    end_canary(serving)
    assert releases.unneeded(serving, 1) == ["a" * 16, NEW]


@pytest.fixture(scope="module")
def running(tiny_releases: tuple[Release, Release], tmp_path_factory: pytest.TempPathFactory) -> Generator[Supervisor]:
    with supervised(tmp_path_factory.mktemp("canary") / "serving", *tiny_releases) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> key, and under `file` where they are."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return {f"key{number}": add_key(file, f"key{number}", 6000) for number in range(12)} | {"file": str(file)}


@pytest.fixture(scope="module")
def page(running: Supervisor, keys: dict[str, str]) -> Generator[httpx.Client]:
    folder = running.serving / "releases"
    with page_of(running, folder, kept_answers=100, limits=LIMITS, keys=Keys(Path(keys["file"]))) as client:
        yield client


def embed(page: httpx.Client, key: str, text: str) -> httpx.Response:
    question = {"model": MODEL, "input": text}
    return page.post("/v1/embeddings", json=question, headers={"Authorization": f"Bearer {key}"})


def loaded(running: Supervisor) -> set[str]:
    with closing(Triton(server_of(running))) as triton:
        ready = {name for name, state in triton.states().items() if state == "READY"}
    return {name.rpartition("_")[2] for name in ready - set(PUBLIC)}


def of_release(page: httpx.Client, keys: dict[str, str], known: tuple[Release, ...]) -> dict[str, str]:
    """Key -> the release that answers it, three times, with just its features."""
    text, by_id = known[0].truth.texts[0], {one.id: one for one in known}
    answering = {}
    for name, key in keys.items():
        if name == "file":
            continue
        answers = [embed(page, key, text).json() for _ in range(3)]
        (answering[name],) = {answer["model"] for answer in answers}
        true = by_id[answering[name]].truth.text_features[0]
        for answer in answers:
            np.testing.assert_allclose(answer["data"][0]["embedding"], true, atol=1e-4)
    return answering


def test_some_keys_meet_the_canary_until_it_fails_and_then_nobody_does(
    running: Supervisor, page: httpx.Client, keys: dict[str, str], tiny_releases: tuple[Release, Release]
) -> None:
    first, second = tiny_releases
    assert set(of_release(page, keys, tiny_releases).values()) == {first.id}
    begin_canary(running.serving, second.id, 0.5)
    running.check()  # it stays beside the public one
    assert loaded(running) == {first.id, second.id}
    answering = of_release(page, keys, tiny_releases)
    assert set(answering.values()) == {first.id, second.id}
    asked = {"Authorization": f"Bearer {keys['key0']}"}
    assert f'clip_gateway_canary_share{{release="{second.id}"}} 0.5' in page.get("/metrics", headers=asked).text

    name = next(name for name, release in answering.items() if release == second.id)
    with closing(Triton(server_of(running))) as triton:
        triton.unload(f"text_core_{second.id}")
    statuses = [embed(page, keys[name], f"没问过 {number}").status_code for number in range(6)]
    assert all(status >= 500 for status in statuses[:3]) and statuses[3:] == [200] * 3
    assert aborted(running.serving)[0].startswith("clip_text: errors in 3 of ")
    assert set(of_release(page, keys, tiny_releases).values()) == {first.id}
    figures = page.get("/metrics", headers=asked).text
    assert 'clip_gateway_canary_aborts_total{reason="errors"} 1.0' in figures
    assert 'clip_gateway_canary_share{release="none"} 0.0' in figures
    running.check()
    assert loaded(running) == {first.id}
    with pytest.raises(UserError, match="no canary is under way"):
        end_canary(running.serving)


def test_a_rollout_makes_a_canary_public_and_ends_it(
    running: Supervisor, page: httpx.Client, keys: dict[str, str], tiny_releases: tuple[Release, Release]
) -> None:
    first, second = tiny_releases
    begin_canary(running.serving, second.id, 0.5)
    roll_out(running.serving, second.id)
    assert set(of_release(page, keys, tiny_releases).values()) == {second.id}
    assert releases.canary(running.serving) is None and loaded(running) == {second.id}
    with closing(Triton(server_of(running))) as triton:
        assert live.public_release(triton) == second.id
    with pytest.raises(UserError, match="is public already"):
        begin_canary(running.serving, second.id, 0.5)
    with pytest.raises(UserError, match="a share between 0 and 1"):
        begin_canary(running.serving, first.id, 1.5)


def test_a_triton_that_is_started_again_has_no_canary(
    running: Supervisor, tiny_releases: tuple[Release, Release]
) -> None:
    public, other = releases.current(running.serving), tiny_releases[0].id
    begin_canary(running.serving, other, 0.5)
    running.stop()
    running.start()
    assert releases.canary(running.serving) is None
    assert loaded(running) == {public}
    assert releases.history(running.serving)[-1][1:] == ("ended", other, "Triton was started without it")
