"""The page's application over HTTP: who may ask, whose pictures come, and what is said when something goes wrong."""

import logging
import shutil
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import numpy as np
import pytest

from clip_core.errors import UserError
from clip_core.serve import client as command
from clip_core.serve import page as page_module
from clip_core.serve import pictures as pictures_module
from clip_core.serve.queries import search
from clip_core.serve.triton import connect
from clip_core.serve.upstream import AT_ONCE
from tests.page_server import FOUND, StandIn, Supervised, add_gallery, page_of, standing_in
from tests.tiny_release import TOP_K, Release
from tests.tiny_split import make_split, plain_picture

if TYPE_CHECKING:
    from clip_core.serve.triton import Server

OLD, NEW = "0123456789abcdef", "fedcba9876543210"
SECONDS = 1.0  # that an answer may take where nothing may delay it: it takes hundredths, but cores here are shared


@pytest.fixture
def triton_says() -> StandIn:
    """What stands for Triton: it finds "b" and "a" of the old release, until a test has it do otherwise."""
    stand_in = StandIn()
    stand_in.answer = lambda inputs, context: FOUND | {"release": OLD}
    return stand_in


@pytest.fixture
def backend(triton_says: StandIn) -> Generator[Supervised]:
    """Where it answers."""
    with standing_in(triton_says) as address:
        yield Supervised(address)


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """The old release with the galleries `birds` and `cats`, the new one with `cats`: in each, "b" is another one."""
    folder = tmp_path / "releases"
    cats = make_split(tmp_path / "cats", [("a", "红色", True, None), ("b", "绿色", True, None)])
    more = make_split(tmp_path / "more", [("b", "蓝色", True, None), ("c/猫 1", "黄色", True, None)])
    add_gallery(folder, OLD, "cats", cats.folder)
    add_gallery(folder, OLD, "birds", cats.folder)
    add_gallery(folder, NEW, "cats", more.folder)
    return folder


@pytest.fixture
def page(backend: Supervised, releases: Path) -> Generator[httpx.Client]:
    with page_of(backend, releases) as client:
        yield client


def ask(page: httpx.Client, text: str = "猫", **more: Any) -> httpx.Response:
    return page.get("/api/search", params={"text": text, **more})


def check_problem(answer: httpx.Response, status: int, kind: str) -> str:
    """Its message, when it is the problem that it should be."""
    problem = answer.json()
    assert (answer.status_code, problem["kind"]) == (status, kind), problem
    assert problem["id"] == answer.headers["X-Request-Id"]
    assert set(problem) == {"error", "kind", "id"}
    assert ("Retry-After" in answer.headers) == (status == 503)
    return problem["error"]


# What a search says.


def test_an_answer_names_release_gallery_and_the_pictures_of_just_these(page: httpx.Client) -> None:
    answer = ask(page).json()
    assert {key: answer[key] for key in ("text", "release", "gallery")} == {
        "text": "猫",
        "release": OLD,
        "gallery": "birds",  # the first
    }
    assert answer["hits"] == [
        {"image_id": "b", "score": 0.9, "probability": None, "name": "绿色", "image": f"/images/{OLD}/birds/b"},
        {"image_id": "a", "score": 0.1, "probability": None, "name": "红色", "image": f"/images/{OLD}/birds/a"},
    ]
    assert ask(page, top=1).json()["hits"] == answer["hits"][:1]


def test_triton_is_told_a_gallery_only_when_one_is_named(page: httpx.Client, triton_says: StandIn) -> None:
    assert ask(page, gallery="cats").json()["hits"][0]["image"] == f"/images/{OLD}/cats/b"
    ask(page)
    assert triton_says.asked == [{"TEXT": "猫", "GALLERY": "cats"}, {"TEXT": "猫"}]


def test_the_galleries_offered_are_those_of_the_release_that_answers(page: httpx.Client, triton_says: StandIn) -> None:
    assert page.get("/api/galleries").json() == {"release": OLD, "galleries": ["birds", "cats"]}
    triton_says.answer = lambda inputs, context: FOUND | {"release": NEW}
    assert page.get("/api/galleries").json() == {"release": NEW, "galleries": ["cats"]}


def test_the_real_triton_finds_the_same_through_the_page(triton: "Server", release: Release, tmp_path: Path) -> None:
    add_gallery(tmp_path, release.id, "test", release.store.folder)
    texts = release.truth.texts[:3]
    with closing(connect(triton.address)) as client:
        found = search(client, texts)
    with page_of(Supervised(triton.address), tmp_path) as page:
        for text, expected in zip(texts, found, strict=True):
            answer = ask(page, text).json()
            assert (answer["release"], len(answer["hits"])) == (expected.release, TOP_K)
            assert [hit["image_id"] for hit in answer["hits"]] == expected.ids
            assert [hit["score"] for hit in answer["hits"]] == pytest.approx(expected.scores, abs=1e-4)
            place = release.store.image_ids.index(expected.ids[0])
            assert page.get(answer["hits"][0]["image"]).content == release.store.image_bytes(place)
        assert check_problem(ask(page, "  "), 400, "input") == "item 0: the text is empty"


# Pictures.


def test_a_picture_is_that_of_the_release_in_its_address_whichever_answers(
    page: httpx.Client, triton_says: StandIn
) -> None:
    for answering in (OLD, NEW, OLD):  # a rollout, and a rollback
        triton_says.answer = lambda inputs, context, now=answering: FOUND | {"release": now}
        ask(page)
        assert page.get(f"/images/{OLD}/cats/b").content == plain_picture(1)
        assert page.get(f"/images/{NEW}/cats/b").content == plain_picture(0)


def test_the_address_of_a_picture_is_that_of_any_id(page: httpx.Client, triton_says: StandIn) -> None:
    triton_says.answer = lambda inputs, context: {"ids": ["c/猫 1"], "scores": [0.5], "release": NEW}
    (hit,) = ask(page).json()["hits"]
    assert hit["name"] == "黄色"
    assert page.get(hit["image"]).content == plain_picture(1)


def test_a_browser_asks_for_a_picture_once(page: httpx.Client) -> None:
    address = f"/images/{OLD}/cats/b"
    first = page.get(address)
    assert first.headers["Content-Type"] == "image/png"
    assert first.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    again = page.get(address, headers={"If-None-Match": f'"other", W/{first.headers["ETag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert page.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


def test_what_is_not_there_is_not_found(page: httpx.Client, releases: Path) -> None:
    (releases / "secret").write_text("not for the page")
    assert page.get(f"/images/{OLD}/cats/b").status_code == 200
    for path in (
        f"{OLD}/cats/z",
        f"{OLD}/dogs/b",
        f"{16 * '0'}/cats/b",
        f"{OLD}/cats/..%2F..%2F..%2Fsecret",
        f"{OLD}/..%2f..%2f{NEW}%2Fgalleries%2Fcats/b",
        "..%2Fsecret/x/b",
    ):
        check_problem(page.get(f"/images/{path}"), 404, "not_found")
    check_problem(page.get("/api/health"), 404, "not_found")


def test_a_removed_release_is_not_found_any_more(page: httpx.Client, releases: Path) -> None:
    address = f"/images/{OLD}/cats/b"
    assert page.get(address).status_code == 200
    shutil.rmtree(releases / OLD)
    assert OLD in check_problem(page.get(address), 404, "not_found")
    assert page.get(f"/images/{NEW}/cats/b").status_code == 200


def test_a_release_added_later_is_found(page: httpx.Client, releases: Path) -> None:
    later = "a" * 16
    check_problem(page.get(f"/images/{later}/cats/b"), 404, "not_found")
    shutil.copytree(releases / OLD, releases / later, symlinks=True)
    assert page.get(f"/images/{later}/cats/b").content == plain_picture(1)


def test_only_the_galleries_last_used_stay_open(
    page: httpx.Client, releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_module, "MAX_OPEN", 2)
    for number in range(4):
        shutil.copytree(tmp_path / "cats", tmp_path / str(number))
        add_gallery(releases, OLD, f"copy{number}", tmp_path / str(number))
    for number in (0, 1, 2, 3, 0):
        assert page.get(f"/images/{OLD}/copy{number}/b").content == plain_picture(1)
    deadline = time.monotonic() + 10
    while (held := files_open_in(tmp_path)) != {str(tmp_path / number / "images-00000.lmdb") for number in "30"}:
        assert time.monotonic() < deadline, held
        time.sleep(0.05)


def files_open_in(folder: Path) -> set[str]:
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return {link for link in links if link.startswith(str(folder)) and link.endswith(".lmdb")}


def test_a_large_gallery_that_is_being_opened_delays_nobody(
    page: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def slowly(folder: Path, really=pictures_module._open_pictures) -> pictures_module.Pictures:
        opened.append(folder)
        time.sleep(3 * SECONDS)
        return really(folder)

    assert page.get(f"/images/{NEW}/cats/b").status_code == 200
    monkeypatch.setattr(pictures_module, "_open_pictures", slowly)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(page.get, f"/images/{OLD}/cats/b") for _ in range(12)]
        wait_for(lambda: bool(opened))
        for path in ("/", "/livez", f"/images/{NEW}/cats/b"):
            assert seconds(page, path) < SECONDS
        assert [answer.result().content for answer in waiting] == [plain_picture(1)] * 12
    assert len(opened) == 1


# Many and slow searches.


def test_eighty_hanging_searches_delay_nothing_and_those_too_many_are_refused_at_once(
    page: httpx.Client, triton_says: StandIn
) -> None:
    address = ask(page).json()["hits"][0]["image"]
    end = threading.Event()

    def hang(inputs: dict[str, str], context: grpc.ServicerContext) -> dict:
        end.wait(60)
        return FOUND | {"release": OLD}

    triton_says.answer, triton_says.asked = hang, []
    refused: list[httpx.Response] = []

    def ask_and_note() -> httpx.Response:
        answer = ask(page)
        if not end.is_set():
            refused.append(answer)
        return answer

    with ThreadPoolExecutor(80) as pool:
        answers = [pool.submit(ask_and_note) for _ in range(80)]
        try:
            wait_for(lambda: len(triton_says.asked) == AT_ONCE and len(refused) == 80 - AT_ONCE)
            took = {path: seconds(page, path) for path in ("/", "/livez", "/readyz", address)}
        finally:
            end.set()
        print(took)
        assert max(took.values()) < SECONDS, took
        assert all("64 searches are running" in check_problem(answer, 503, "overload") for answer in refused)
        assert sorted(answer.result().status_code for answer in answers) == [200] * 64 + [503] * 16
    assert ask(page).status_code == 200


def test_a_search_ends_at_its_deadline(
    page: httpx.Client, triton_says: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "DEADLINE", 1.0)
    asked_for_nothing = threading.Event()

    def hang(inputs: dict[str, str], context: grpc.ServicerContext) -> dict:
        context.add_callback(asked_for_nothing.set)
        asked_for_nothing.wait(30)
        return FOUND | {"release": OLD}

    triton_says.answer = hang
    started = time.monotonic()
    assert check_problem(ask(page), 503, "overload") == "no answer within 1 s"
    assert time.monotonic() - started < 1.0 + SECONDS
    assert asked_for_nothing.wait(10)  # Triton is told that nobody waits any more


def seconds(page: httpx.Client, path: str) -> float:
    started = time.perf_counter()
    assert page.get(path).status_code == 200
    return time.perf_counter() - started


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Triton comes and goes.


def test_triton_is_asked_where_it_is_now(backend: Supervised, page: httpx.Client) -> None:
    assert ask(page).json()["release"] == OLD
    other = StandIn()
    other.answer = lambda inputs, context: FOUND | {"release": NEW}
    with standing_in(other) as address:
        backend.address = ""
        assert "not running" in check_problem(ask(page), 503, "overload")
        backend.address = address
        assert ask(page).json()["release"] == NEW


def test_triton_back_at_its_old_address_is_soon_asked_again(releases: Path, triton_says: StandIn) -> None:
    with standing_in(triton_says) as address:
        backend = Supervised(address)
    with page_of(backend, releases) as page:
        began = time.monotonic()
        while time.monotonic() - began < 6:  # by then, gRPC by itself would try again every four seconds only
            assert check_problem(ask(page), 503, "overload") == "Triton is not ready"
            time.sleep(0.05)
        with standing_in(triton_says, int(address.rpartition(":")[2])):
            began = time.monotonic()
            while ask(page).status_code == 503:
                assert time.monotonic() - began < 2
                time.sleep(0.05)


def test_it_is_ready_when_every_public_model_is(backend: Supervised, page: httpx.Client) -> None:
    assert page.get("/readyz").json() == {"models": backend.states, "release": None}
    ask(page)
    answer = page.get("/readyz")
    assert (answer.status_code, answer.json()["release"]) == (200, OLD)
    backend.states = backend.states | {"clip_image": "the stub process is not healthy"}
    answer = page.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"models": backend.states, "release": OLD})
    backend.states = dict.fromkeys(backend.states, "ok")
    assert page.get("/readyz").status_code == 200
    backend.address = ""
    assert page.get("/readyz").status_code == 503
    assert (page.get("/livez").status_code, page.get("/livez").json()) == (200, {"status": "ok"})


# Who may ask, and how much.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost", "LOCALHOST:8000", "[::1]:8000"])
def test_a_name_of_this_machine_is_answered(host: str, page: httpx.Client) -> None:
    assert page.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", ""])
def test_a_name_of_elsewhere_that_leads_here_is_refused(host: str, page: httpx.Client) -> None:
    for path in ("/", "/api/search?text=猫", f"/images/{OLD}/cats/b"):
        assert "answers as 127.0.0.1, localhost, [::1]" in check_problem(
            page.get(path, headers={"Host": host}), 421, "input"
        )


def test_the_names_may_be_others(backend: Supervised, releases: Path) -> None:
    with page_of(backend, releases, host_names=("search.example",)) as page:
        assert page.get("/", headers={"Host": "search.example"}).status_code == 200
        check_problem(page.get("/"), 421, "input")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},  # another port of this machine
    ],
    ids=str,
)
def test_a_page_of_elsewhere_may_not_search(headers: dict[str, str], page: httpx.Client, triton_says: StandIn) -> None:
    check_problem(page.get("/api/search?text=猫", headers=headers), 403, "input")
    assert triton_says.asked == []


def test_the_page_itself_may_search(page: httpx.Client) -> None:
    ours = {"Origin": f"http://{page.base_url.netloc.decode()}", "Sec-Fetch-Site": "same-origin"}
    assert page.get("/api/search?text=猫", headers=ours).status_code == 200
    # A link that leads here from elsewhere.
    assert page.get("/?q=猫", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_of_more_than_a_mebibyte_is_refused(is_chunked: bool, page: httpx.Client) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        yield from [bytes(2**16)] * (size // 2**16)
        yield bytes(size % 2**16)

    def send(size: int) -> httpx.Response:
        return page.request("GET", "/api/search?text=猫", content=chunks(size) if is_chunked else bytes(size))

    assert send(2**20).status_code == 200
    check_problem(send(2**20 + 1), 413, "input")
    assert ask(page).status_code == 200


def test_a_text_too_long_is_refused_with_the_numbers(page: httpx.Client, triton_says: StandIn) -> None:
    longest = "a" + "猫" * (16 * 1024 // 3)
    assert ask(page, longest).status_code == 200
    message = check_problem(ask(page, longest + "a"), 400, "input")
    assert message == "the text has 16385 bytes; 16384 are allowed"
    assert len(triton_says.asked) == 1


@pytest.mark.parametrize("more", [{"top": 0}, {"top": 101}, {"top": "x"}, {"gallery": "../cats"}, {"gallery": ""}])
def test_a_parameter_out_of_range_is_refused_by_name(more: dict[str, Any], page: httpx.Client) -> None:
    assert check_problem(ask(page, **more), 400, "input").startswith(f"{next(iter(more))}: ")


# Errors, by kind.


@pytest.mark.parametrize(
    ("code", "message", "status", "kind", "said"),
    [
        ("INVALID_ARGUMENT", "in ensemble x: bad input: item 0: the text is empty", 400, "input", "item 0: the text"),
        ("INVALID_ARGUMENT", "unexpected shape for input 'TEXT'", 500, "internal", "an internal error"),
        ("INTERNAL", "Stub process is not healthy", 500, "internal", "an internal error"),
        ("UNAVAILABLE", "Exceeds maximum queue size", 503, "overload", "Triton is not ready"),
        ("NOT_FOUND", "unknown model", 503, "overload", "Triton is not ready"),
        ("DEADLINE_EXCEEDED", "", 503, "overload", "Triton is not ready"),
    ],
)
def test_what_triton_refuses_is_said_by_its_kind(
    code: str, message: str, status: int, kind: str, said: str, page: httpx.Client, triton_says: StandIn
) -> None:
    def refuse(inputs: dict[str, str], context: grpc.ServicerContext) -> dict:
        context.abort(getattr(grpc.StatusCode, code), message)
        raise AssertionError

    triton_says.answer = refuse
    assert check_problem(ask(page), status, kind).startswith(said)


@pytest.mark.parametrize("error", [ValueError("by mistake"), UserError("of the store"), KeyError("b")], ids=repr)
def test_a_failure_of_ours_is_explained_in_the_log_and_not_to_the_caller(
    error: Exception, page: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(pictures_module.Pictures, "read", fail)
    answer = page.get(f"/images/{OLD}/cats/b")
    assert check_problem(answer, 500, "internal") == "an internal error; the server's log explains it"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert answer.json()["id"] in record.getMessage()
    assert record.exc_info and record.exc_info[1] is error


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_never_a_hit(score: float, page: httpx.Client, triton_says: StandIn) -> None:
    triton_says.answer = lambda inputs, context: {"ids": ["b", "a"], "scores": [0.9, score], "release": NEW}
    for top in (1, 2):
        check_problem(ask(page, top=top), 500, "internal")


def test_every_answer_has_an_id_and_the_headers_that_browsers_heed(
    page: httpx.Client, triton_says: StandIn, backend: Supervised
) -> None:
    etag = {"If-None-Match": "*"}
    answers = [
        *(page.get(path) for path in ("/", "/livez", "/readyz", "/api/search?text=猫", f"/images/{OLD}/cats/b", "/no")),
        page.get(f"/images/{OLD}/cats/b", headers=etag),
        page.get("/", headers={"Host": "evil.example"}),
        page.post("/api/search"),
        ask(page, top=0),
    ]
    backend.address = ""
    answers.append(ask(page))
    assert {answer.status_code for answer in answers} == {200, 304, 400, 404, 405, 421, 503}
    for answer in answers:
        headers = answer.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert headers["Content-Security-Policy"].endswith("; frame-ancestors 'none'")
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == len(answers)


# The command line client.


def test_the_command_says_what_is_wrong_by_its_kind(
    page: httpx.Client, triton_says: StandIn, backend: Supervised
) -> None:
    url = str(page.base_url).rstrip("/")
    assert command.ask(url, "猫", 1, "cats")["hits"][0]["image_id"] == "b"
    with pytest.raises(UserError, match="no release '0123456789abcdef' with a gallery 'dogs' here"):
        command.ask(url, "猫", 1, "dogs")
    triton_says.answer = lambda inputs, context: {"ids": ["b"], "scores": [np.nan], "release": OLD}
    with pytest.raises(UserError, match=r"an internal error; the server's log explains it \(request [0-9a-f]{16}\)"):
        command.ask(url, "猫", 1)
    backend.address = ""
    with pytest.raises(UserError, match=r"overloaded or not ready: Triton is not running.*; try again in 1 s"):
        command.ask(url, "猫", 1)
