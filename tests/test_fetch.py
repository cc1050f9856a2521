"""Pictures are fetched within time, size and addresses; what failed is named, and alone asked for again."""

import asyncio
import json
import socket
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from clip_core.config.engine import Engine
from clip_core.config.sources import Fetch, TableSource
from clip_core.data.sources import fetch as fetching
from clip_core.data.sources import fetch_address, harvest, parts_of
from clip_core.data.sources.fetch import OBVIOUS, fetch, fetched_at
from clip_core.data.sources.fetch_address import is_public
from clip_core.errors import UserError
from stages import ingest
from tests.harvested import harvested
from tests.picture_server import PictureServer, picture_server
from tests.small_raw import drawing, encoded

LOCAL = Fetch(concurrency=8, timeout_seconds=30.0, max_bytes=2**20, allow_private=True, min_yield=0.1)
HASTY = LOCAL.model_copy(update={"timeout_seconds": 1.0})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[PictureServer]:
    monkeypatch.chdir(tmp_path)  # `.work` lies where the process runs
    monkeypatch.setattr(fetching, "BACK_OFF", 0.01)
    with picture_server() as running:
        yield running


def table(folder: Path, urls: list[str], settings: Fetch | None = LOCAL) -> TableSource:
    lines = [json.dumps({"url": url, "caption": f"第{i}张"}, ensure_ascii=False) + "\n" for i, url in enumerate(urls)]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return TableSource(
        source="table",
        path=str(folder),
        table=None,
        columns={"image": "url"},
        fetch=settings,
        licence=None,
        valid_percent=None,
        test_percent=None,
    )


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none", "url_404"),
        ("/slow", "url_timeout"),
        ("/slow-head", "url_timeout"),
        ("/hang", "url_timeout"),
        ("/endless", "url_too_large"),
        ("/large", "url_too_large"),
        ("/hang-up", "url_connection_lost"),
        ("/empty", "url_empty"),
        ("/packed", "url_encoded"),
        ("/round", "url_redirected_too_often"),
        ("/to/file:///etc/passwd", "url_scheme"),
        ("/to/ftp://127.0.0.1/0.png", "url_scheme"),
    ],
)
def test_an_answer_that_is_no_picture_is_named_in_time(path: str, reason: str, server: PictureServer) -> None:
    started = time.monotonic()
    settings = HASTY if reason == "url_timeout" else LOCAL
    failed, counts = fetch([server.url + path, f"{server.url}/0.png"], settings)
    assert failed == {server.url + path: reason}
    assert counts == {"urls": 2, "urls_fetched": 1, "urls_failed": 1}
    assert time.monotonic() - started < 20  # three tries of a second, or none that takes 30
    assert not list(Path(".work/fetched/aside").iterdir())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "url_scheme"),
        ("ftp://example.com/0.png", "url_scheme"),
        ("http://", "url_invalid"),
        ("http://[::1", "url_invalid"),
        (f"http://{'a' * 64}.example/0.png", "url_invalid"),
        ("http://127.0.0.1:1/0.png", "url_no_connection"),
        ("http://name.invalid/0.png", "url_no_such_host"),
    ],
)
def test_a_url_that_leads_nowhere_is_named(url: str, reason: str, server: PictureServer) -> None:
    assert fetch([url], LOCAL)[0] == {url: reason}


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::]"],
)
def test_no_form_of_a_private_address_is_asked_unless_allowed(host: str, server: PictureServer) -> None:
    url = f"http://{host}:{server.server_port}/0.png"
    assert fetch([url], OBVIOUS)[0] == {url: "url_private_address"}
    assert not server.asked


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("2001:0:7f00:1::", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address: str, answer: bool) -> None:
    assert is_public(address) == answer


def test_each_hop_of_a_redirect_is_checked(server: PictureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_address, "is_public", lambda address: address == "127.0.0.1")  # as if it were
    inside, outside = (
        f"{server.url}/to/http://{host}:{server.server_port}/0.png" for host in ("127.0.0.2", "127.0.0.1")
    )
    failed, _ = fetch([inside, outside], LOCAL.model_copy(update={"allow_private": False}))
    assert failed == {inside: "url_private_address"}
    assert fetched_at(outside).read_bytes() == encoded(drawing(0))


def test_what_was_checked_is_connected_to_whatever_a_second_look_up_says(
    server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_address, "is_public", lambda address: address == "127.0.0.1")
    answers = iter(["127.0.0.1", "127.0.0.9", "127.0.0.9"])

    async def rebinding(_loop: object, _host: str, port: int, **_: object) -> list[tuple]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", rebinding)
    url = f"http://pictures.example:{server.server_port}/3.png"
    assert not fetch([url], LOCAL.model_copy(update={"allow_private": False}))[0]
    assert server.hosts == {f"pictures.example:{server.server_port}"} and next(answers) == "127.0.0.9"


def test_transient_failures_are_tried_again_and_others_not(server: PictureServer) -> None:
    urls = [f"{server.url}/{name}" for name in ("flaky", "none", "hang-up")]
    failed, _ = fetch(urls, LOCAL)
    assert failed == {urls[1]: "url_404", urls[2]: "url_connection_lost"}
    assert server.asked == {"/flaky": 3, "/none": 1, "/hang-up": 3}


def test_a_rerun_asks_only_for_what_failed(server: PictureServer, capsys: pytest.CaptureFixture[str]) -> None:
    urls = [f"{server.url}/{i}.png" for i in range(5)]
    fetch(urls[:3], LOCAL)
    server.failing |= {"/3.png", "/4.png"}
    assert set(fetch(urls, LOCAL)[0].values()) == {"url_503"}
    assert "5 URLs, 3 fetched before, 0 now; 2 failed (url_503 2)" in capsys.readouterr().out
    server.failing.clear()
    server.asked.clear()
    assert fetch(urls, LOCAL) == ({}, {"urls": 5, "urls_fetched": 5, "urls_failed": 0})
    assert server.asked == {"/3.png": 1, "/4.png": 1}


def test_a_hopeless_yield_ends_early_and_says_why(server: PictureServer) -> None:
    urls = [f"{server.url}/none/{i}" for i in range(2000)]
    with pytest.raises(UserError, match=r"only 2 of 10\d URLs gave a picture.*min_yield.*url_404 \d+.*none/\d+"):
        fetch([f"{server.url}/0.png", f"{server.url}/1.png", *urls], LOCAL)
    assert server.asked.total() < 120
    assert fetched_at(f"{server.url}/0.png").exists()


def test_what_a_run_before_fetched_counts_for_the_yield(server: PictureServer) -> None:
    good, bad = ([f"{server.url}/{kind}" for kind in kinds] for kinds in (
        [f"{i}.png" for i in range(30)], [f"none/{i}" for i in range(150)]
    ))  # fmt: skip
    fetch(good, LOCAL)
    assert len(fetch([*good, *bad], LOCAL)[0]) == 150


def test_a_table_of_urls_becomes_pairs_and_its_failures_are_rejected_rows(server: PictureServer) -> None:
    urls = [f"{server.url}/0.png", f"{server.url}/none", f"{server.url}/to/{server.url}/1.png", f"{server.url}/0.png"]
    found = harvested(table(Path(), [*urls, "file:///etc/passwd"]))
    assert found.pairs["caption"].tolist() == ["第0张", "第2张", "第3张"]
    assert found.pairs["image_id"].nunique() == 2 and set(found.pairs["licence"]) == {"unknown"}
    assert [image for _, image in found.images].count(encoded(drawing(0))) == 1
    assert found.rejected[["line", "reason", "image_id"]].to_numpy().tolist() == [
        [2, "url_404", urls[1]],
        [5, "url_scheme", "file:///etc/passwd"],
    ]
    assert found.more == {"urls": 4, "urls_fetched": 2, "urls_failed": 2}


def test_the_stage_run_again_asks_only_for_what_failed_and_then_for_nothing(
    server: PictureServer, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table(Path(), [f"{server.url}/0.png", f"{server.url}/8.png"])
    engine = Engine(maps="local", processes=1, address=None)

    def run() -> tuple[int, dict[str, int]]:
        server.asked.clear()
        ingest.main(ingest.Params(data=data), engine, Path("raw"), Path("quarantine"), Path("tombstones.txt"))
        return json.loads(Path("raw/counts.json").read_text(encoding="utf-8"))["urls_failed"], dict(server.asked)

    server.failing.add("/8.png")
    assert run() == (1, {"/0.png": 1, "/8.png": 3})
    assert run() == (1, {"/8.png": 3})
    server.failing.clear()
    assert run() == (0, {"/8.png": 1})
    capsys.readouterr()
    assert run() == (0, {}) and "fetch" not in capsys.readouterr().out


def test_without_a_word_on_fetching_private_addresses_are_refused(server: PictureServer) -> None:
    with pytest.raises(UserError, match=r"not one of its 1 records is a pair; the first: line 1, url_private_address"):
        harvested(table(Path(), [f"{server.url}/0.png"], settings=None))


def test_only_a_result_that_lacks_pictures_is_made_anew_by_the_next_run(server: PictureServer) -> None:
    def state_after_another_run(urls: list[str]) -> tuple[list[int], list[int]]:
        data = table(Path(), urls)
        (part,) = parts_of(data)
        files = harvest(data, part).files
        before = [file.stat().st_mtime_ns for file in files]
        time.sleep(0.01)
        parts_of(data)
        return before, [file.stat().st_mtime_ns for file in files]

    before, after = state_after_another_run([f"{server.url}/0.png", f"{server.url}/none"])
    assert len(before) == 1 and before != after
    assert state_after_another_run([f"{server.url}/0.png"]) == ([], [])
