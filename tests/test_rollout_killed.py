"""A rollout that is killed goes on or back by itself; `make prove NAME=rollouts` kills it at every step."""

from collections.abc import Generator

import pytest

from clip_core.serve.supervisor import Supervisor
from tests.rollout_kills import outcome_of_a_kill
from tests.tiny_release import Release
from tests.under_load import supervised


@pytest.fixture(scope="module")
def running(tiny_releases: tuple[Release, Release], tmp_path_factory: pytest.TempPathFactory) -> Generator[Supervisor]:
    with supervised(tmp_path_factory.mktemp("killed") / "serving", *tiny_releases) as supervisor:
        yield supervisor


@pytest.mark.parametrize(
    ("step", "when", "put_right_by", "serves"),
    [
        ("publish", "2", "the next rollout", "old"),
        ("make current", "after", "the gateway", "new"),
    ],
)
def test_a_rollout_killed_under_load_goes_on_or_back_by_itself_and_no_request_fails(
    step: str, when: str, put_right_by: str, serves: str, running: Supervisor, tiny_releases: tuple[Release, Release]
) -> None:
    outcome = outcome_of_a_kill(running, tiny_releases, step, when, put_right_by)
    assert outcome.serves == serves
    assert (outcome.failed_requests, outcome.mixed_answers) == (0, 0)
    assert outcome.public == {"publish": "both", "make current": "new"}[step]
