"""What the gateway remembers of answers: always what the release would say now, and nothing of what failed."""

import re
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from clip_core.serve.answers import Answers
from clip_core.serve.rollout import roll_back, roll_out
from clip_core.serve.shapes import MODEL
from tests.page_server import FOUND, StandIn, Supervised, add_gallery, page_of, standing_in
from tests.tiny_release import Release
from tests.tiny_split import make_split
from tests.under_load import supervised

if TYPE_CHECKING:
    from clip_core.serve.triton import Server

OLD, NEW = "0123456789abcdef", "fedcba9876543210"


def embed(page: httpx.Client, *texts: str) -> httpx.Response:
    return page.post("/v1/embeddings", json={"model": MODEL, "input": list(texts)})


def counted(page: httpx.Client) -> dict[str, int]:
    """Texts whose answer was known, and others."""
    found = re.findall(r'^clip_gateway_texts_total{known="(\w+)"} (\S+)$', page.get("/metrics").text, re.MULTILINE)
    return {known: int(float(number)) for known, number in found}


def test_an_answer_is_byte_for_byte_the_one_without_a_memory(
    triton: "Server", release: Release, tmp_path: Path
) -> None:
    one, other = release.truth.texts[:2]
    backend = Supervised(triton.address, release.id)
    with page_of(backend, tmp_path) as page:
        expected = embed(page, one).content
        assert counted(page) == {"yes": 0, "no": 0}
    with page_of(backend, tmp_path, kept_answers=10) as page:
        assert [embed(page, one).content for _ in range(3)] == [expected] * 3
        assert counted(page) == {"yes": 2, "no": 1}
        both = [made["embedding"] for made in embed(page, other, one).json()["data"]]
        np.testing.assert_allclose(both, release.truth.text_features[[1, 0]], atol=1e-4)
        assert counted(page) == {"yes": 3, "no": 2}


def test_a_refused_request_leaves_nothing_of_it(triton: "Server", release: Release, tmp_path: Path) -> None:
    text = release.truth.texts[0]
    with page_of(Supervised(triton.address, release.id), tmp_path, kept_answers=10) as page:
        for _ in range(2):
            assert embed(page, text, "  ").status_code == 400
        assert counted(page) == {"yes": 0, "no": 4}
        assert embed(page, text).status_code == 200


@pytest.fixture
def triton_says() -> StandIn:
    return StandIn()


@pytest.fixture
def backend(triton_says: StandIn) -> Generator[Supervised]:
    with standing_in(triton_says) as address:
        yield Supervised(address, OLD)


@pytest.fixture
def page(backend: Supervised, tmp_path: Path) -> Generator[httpx.Client]:
    cats = make_split(tmp_path / "cats", [("a", "红色", True, None), ("b", "绿色", True, None)])
    for release in (OLD, NEW):
        add_gallery(tmp_path / "releases", release, "cats", cats.folder)
    with page_of(backend, tmp_path / "releases", kept_answers=2) as client:
        yield client


def find(page: httpx.Client, text: str, **more: str) -> httpx.Response:
    return page.get("/api/search", params={"text": text, **more})


@pytest.mark.parametrize(
    "wrong", [{"ids": [], "scores": []}, {"scores": [float("nan"), 0.1]}, {"release": NEW}], ids=str
)
def test_what_is_empty_no_number_or_of_another_release_is_not_kept(
    wrong: dict, page: httpx.Client, triton_says: StandIn
) -> None:
    good = FOUND | {"release": OLD}
    triton_says.answer = lambda inputs, context: good | wrong
    find(page, "猫")
    triton_says.answer = lambda inputs, context: good
    answers = [find(page, "猫").json() for _ in range(2)]
    assert [(answer["release"], len(answer["hits"])) for answer in answers] == [(OLD, 2)] * 2
    assert len(triton_says.asked) == 2  # the third was known
    assert counted(page) == {"yes": 1, "no": 2}


def test_texts_galleries_and_releases_have_answers_of_their_own(
    page: httpx.Client, backend: Supervised, triton_says: StandIn
) -> None:
    triton_says.answer = lambda inputs, context: FOUND | {"release": backend.release}
    for release in (OLD, NEW):
        backend.release = release
        for _ in range(2):
            assert find(page, "猫").json()["release"] == release
    find(page, "猫", gallery="cats")
    assert triton_says.asked == [{"TEXT": "猫"}, {"TEXT": "猫"}, {"TEXT": "猫", "GALLERY": "cats"}]


def test_no_more_than_the_last_ones_are_kept() -> None:
    answers = Answers(2)
    for text in (b"1", b"2", b"1", b"3"):
        if answers.get(OLD, "clip_text", text) is None:
            answers.keep(text, OLD, "clip_text", text)
    assert len(answers) == 2
    assert [answers.get(OLD, "clip_text", text) for text in (b"1", b"2", b"3")] == [b"1", None, b"3"]


def test_a_rollout_and_a_rollback_change_the_answers_at_once(
    tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    first, second = tiny_releases
    texts = first.truth.texts[:2]
    serving = tmp_path / "serving"
    with (
        supervised(serving, *tiny_releases) as running,
        page_of(running, serving / "releases", kept_answers=10) as page,
    ):
        for change, now in (
            (lambda: None, first),
            (lambda: roll_out(serving, second.id), second),
            (lambda: roll_back(serving), first),
        ):
            change()
            for _ in range(2):
                answer = embed(page, *texts).json()
                assert answer["model"] == now.id
                features = [made["embedding"] for made in answer["data"]]
                np.testing.assert_allclose(features, now.truth.text_features[:2], atol=1e-4)
        assert counted(page) == {"yes": 8, "no": 4}  # the first release's answers are still known
