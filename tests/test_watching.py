"""What is asked is kept as far as it may be, and watched: by whom it can be read, how long, how much, and what for."""

import json
import re
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from clip_core.config.section import hash_of
from clip_core.config.watch import Watch
from clip_core.serve.samples import FOLDER, Sampler, columns, facts_of, read, tidy, tokenizer_of
from flows.watch import look
from tests.page_server import Supervised, page_of
from tests.tiny_release import Release, a_serving
from tests.under_load import changed

if TYPE_CHECKING:
    from clip_core.serve.triton import Server

ALL = Watch(keep="features", share=1.0, days=3, most=1000, window=50, false_alarms=0.01)
WORDS = ["红色", "绿色圆形", "蓝色方块", "黄色", "黑色圆形", "紫色方块", "圆形", "方块"]


def kept(serving: Path) -> list[dict]:
    return [json.loads(line) for file in sorted((serving / FOLDER).glob("*")) for line in file.read_text().splitlines()]


def lately(serving: Path, num: int) -> list[dict]:
    """What is kept, once it is so many."""
    deadline = time.monotonic() + 120
    while len(found := kept(serving)) < num:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


@contextmanager
def asking(triton: "Server", serving: Path, **changes: object) -> Generator[httpx.Client]:
    sampler = Sampler(serving, ALL.model_copy(update=changes), lambda: triton.address)
    with page_of(Supervised(triton.address), serving / "releases", sampler=sampler) as client:
        yield client


@pytest.fixture(scope="module")
def shared(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_serving(tmp_path_factory.mktemp("watched") / "serving", release)


@pytest.fixture
def serving(shared: Path) -> Path:
    """A folder of releases, of whose searches nothing is kept yet."""
    for file in (shared / FOLDER, *(shared / FOLDER).glob("*")):
        if file.is_file():
            file.unlink()
    return shared


def test_searches_are_kept_with_features_and_facts_but_without_a_word(
    triton: "Server", serving: Path, release: Release
) -> None:
    text = release.truth.texts[0]
    with asking(triton, serving) as client:
        found = client.get("/api/search", params={"text": text}).json()["hits"]
        client.post("/v1/search", json={"text": f"{text}𪚥"})
        client.post("/v1/search", json={"text": text, "offset": 2})  # the second page is no new question
        client.post("/v1/embeddings", json={"model": "chinese-clip", "input": text})
        client.get("/api/search", params={"text": " "})  # refused
        first, second = lately(serving, 2)
    assert len(kept(serving)) == 2
    assert first["length"] == len(text) and first["unknown"] == 0 < second["unknown"]
    assert first["score"] == pytest.approx(found[0]["score"], abs=1e-3)
    features = read(serving, release.id)[1]["features"]
    assert features[0] == pytest.approx(release.truth.text_features[0], abs=1e-3)
    (file,) = (serving / FOLDER).iterdir()
    assert text not in file.read_text() and "text" not in first
    assert file.stat().st_mode & 0o777 == 0o600


def test_words_are_kept_where_that_is_allowed(triton: "Server", serving: Path) -> None:
    with asking(triton, serving, keep="texts") as client:
        client.get("/api/search", params={"text": "红色圆形"})
        assert lately(serving, 1)[0]["text"] == "红色圆形"


def test_an_answer_without_a_picture_is_kept_as_empty(triton: "Server", serving: Path, release: Release) -> None:
    with asking(triton, serving) as client:
        answer = client.post("/v1/search", json={"text": "红色", "filter": {"family": "none"}})
        assert answer.json()["hits"] == []
        lately(serving, 1)
    assert read(serving, release.id)[1]["empty answer"].tolist() == [1.0]


def test_of_a_day_only_so_many_are_kept_also_after_a_new_start(triton: "Server", serving: Path) -> None:
    for _ in range(2):
        with asking(triton, serving, most=3) as client:
            for text in WORDS[:4]:
                assert client.post("/v1/search", json={"text": text}).status_code == 200
    assert len(kept(serving)) == 3


def test_where_nothing_can_be_written_every_answer_is_as_good(triton: "Server", serving: Path) -> None:
    shutil.rmtree(serving / FOLDER, ignore_errors=True)
    (serving / FOLDER).write_text("in the way")
    with asking(triton, serving) as client:
        assert [client.post("/v1/search", json={"text": text}).status_code for text in WORDS] == [200] * len(WORDS)
    dead = Sampler(serving, ALL, lambda: "127.0.0.1:9")
    started = time.perf_counter()
    for _ in range(5000):  # far more than it can write
        dead.saw("红色", "0" * 16, [0.5], None)
    assert time.perf_counter() - started < 1


def test_what_is_too_old_goes_and_where_nothing_may_be_kept_all_goes(serving: Path) -> None:
    today = datetime.now(UTC).date()
    (serving / FOLDER).mkdir(exist_ok=True)
    for age in range(5):
        (serving / FOLDER / f"{today - timedelta(days=age)}.jsonl").touch()
    tidy(serving, ALL)
    assert len(list((serving / FOLDER).iterdir())) == ALL.days
    tidy(serving, ALL.model_copy(update={"keep": "nothing"}))
    assert not list((serving / FOLDER).iterdir())


def test_half_a_line_of_a_killed_gateway_is_passed_over(serving: Path, release: Release) -> None:
    keep(serving, release, ["红色"])
    (file,) = (serving / FOLDER).iterdir()
    file.write_text(file.read_text() * 2 + '{"time": "2')
    assert len(read(serving, release.id)[0]) == 2
    assert read(serving, release.id, after="3000")[0] == []
    assert read(serving, "0" * 16)[0] == []


# The flow.


def keep(serving: Path, release: Release, texts: list[str]) -> None:
    """Keeps queries as the gateway does, with features of the model that serves."""
    sampler = Sampler(serving, ALL, lambda: "")
    predictor = load_of(release)
    for text in texts:
        (features,) = predictor.encode_texts([text])
        sampler.saw(text, release.id, [float((release.truth.image_features @ features).max())], features)
        while sampler._waiting.qsize() > 100:
            time.sleep(0.01)
    sampler.close()


def load_of(release: Release):
    from clip_core.serve.released_model import load_released

    return load_released(release.folder)


@pytest.fixture
def project(release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Release]:
    """Makes the working directory a project whose release was trained on the tiny pictures, or on others."""

    def make(is_trained_here: bool = True) -> Release:
        data = hash_of(release.store.manifest) if is_trained_here else "0" * 16
        model = "models/text_preprocess/1/model.json"

        def claim(folder: Path) -> None:
            contract = json.loads((folder / model).read_text())
            contract["made"]["data"] = data
            (folder / model).write_text(json.dumps(contract))

        ours = changed(release, tmp_path / "made", claim)
        a_serving(tmp_path / "serving", ours)
        (tmp_path / "data" / "packed").mkdir(parents=True)
        (tmp_path / "data" / "packed" / "train").symlink_to(release.store.folder)
        monkeypatch.chdir(tmp_path)
        return ours

    return make


def said(release: Release, **changes: object) -> str:
    """What is said now; an alarm says so."""
    outcome, has_drifted = look(Path("serving"), release.id, ALL.model_copy(update=changes), seed=1)
    assert has_drifted == ("another kind" in outcome)
    return outcome


def like_training(release: Release, seed: int, num: int = 50) -> list[str]:
    captions = release.store.pairs.query("language == 'zh'").caption
    return captions.sample(num, replace=num > len(captions), random_state=seed).tolist()


ENGLISH = [f"a {colour} picture of a {shape}" for colour in ("red", "light green", "blue") for shape in range(17)]


def test_queries_like_the_training_captions_are_no_drift_and_english_ones_are(project: Callable[..., Release]) -> None:
    release, serving = project(), Path("serving")
    keep(serving, release, like_training(release, 1, num=20))
    assert said(release) == f"release {release.id}: 20 of 50 queries; it waits for more"
    keep(serving, release, like_training(release, 2, num=30))
    assert f"release {release.id}: what is asked is as the captions of its training (p = " in said(release)
    keep(serving, release, ENGLISH)
    assert "what is asked is another kind than the captions of its training, by " in said(release)
    seen = json.loads((serving / "watch" / f"{release.id}.json").read_text())
    assert [(one["against"], one["has_drifted"]) for one in seen["windows"]] == [
        ("training", False),
        ("training", True),
    ]
    page = (serving / "watch" / f"{release.id}.html").read_text()
    assert page.count("another") == 1 and not re.search(r"(src|href)=\"(?!data:)", page)


def test_people_who_ask_otherwise_from_the_start_are_told_of_once(project: Callable[..., Release]) -> None:
    release, serving = project(), Path("serving")
    keep(serving, release, ENGLISH)
    assert "another kind than the captions of its training" in said(release)
    keep(serving, release, ENGLISH)
    assert "what is asked is as its first queries" in said(release)
    keep(serving, release, like_training(release, 1))
    assert "another kind than its first queries" in said(release)


def test_where_the_training_data_are_gone_the_first_queries_are_what_later_ones_are_compared_with(
    project: Callable[..., Release],
) -> None:
    release, serving = project(is_trained_here=False), Path("serving")
    keep(serving, release, like_training(release, 1))
    assert "its training data are not here, so later queries are compared with these" in said(release)
    keep(serving, release, ENGLISH)
    assert "another kind than its first queries" in said(release)


def test_where_nothing_may_be_kept_nothing_is_judged_and_nothing_stays(project: Callable[..., Release]) -> None:
    release, serving = project(), Path("serving")
    keep(serving, release, ENGLISH)
    assert "another kind" in said(release)
    assert "nothing is kept" in said(release, keep="nothing")
    assert not list((serving / FOLDER).iterdir()) and not list((serving / "watch").iterdir())


def test_the_facts_of_a_text_are_its_length_and_its_unknown_characters(release: Release) -> None:
    tokenizer = tokenizer_of(release.folder)
    assert facts_of("红色圆形", tokenizer) == (4, 0.0)
    assert facts_of("红𪚥", tokenizer) == (2, 0.5)
    assert facts_of("", tokenizer) == (0, 0.0)
    assert columns([1], [0.0], [None], np.ones((1, 2)))["empty answer"].tolist() == [1.0]
