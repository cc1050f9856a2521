"""The HTTP client and bulk, before the gateway of a real release, and before a server that fails as a test wants."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_core.errors import UserError
from clip_core.serve import bulk
from clip_core.serve.client import ITEMS_AT_ONCE, AsyncClient, Client, Refused, Unanswered
from tests.conftest import ENVIRONMENT, ROOT
from tests.page_server import Supervised, page_of
from tests.tiny_release import Release, a_serving

if TYPE_CHECKING:
    from clip_core.serve.triton import Server


@pytest.fixture(scope="module")
def url(triton: "Server", release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    serving = a_serving(tmp_path_factory.mktemp("client") / "serving", release)
    with page_of(Supervised(triton.address), serving / "releases") as page:
        yield str(page.base_url)


@contextmanager
def failing(
    *answers: tuple[int, dict[str, str]], message: str | dict = "not now"
) -> Generator[tuple[str, list[float]]]:
    """The address of a server that gives these answers in turn, the last for ever; and when it was asked."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, headers = answers[min(len(asked), len(answers) - 1)]
            asked.append(time.monotonic())
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            found = {"release": "r", "gallery": "g", "hits": []}
            self.wfile.write(
                json.dumps(found if status == 200 else {"error": message, "kind": "x", "id": "1"}).encode()
            )

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_features_are_torch_s_in_the_order_asked_however_many_requests_they_take(url: str, release: Release) -> None:
    truth = release.truth
    texts = [truth.texts[i % len(truth.texts)] for i in range(ITEMS_AT_ONCE + 3)]
    found = Client(url).embed([*texts, release.store.image_bytes(1)])
    expected = [truth.text_features[i % len(truth.texts)] for i in range(len(texts))] + [truth.image_features[1]]
    assert found.release == release.id
    assert np.array(found.features) == pytest.approx(np.stack(expected), abs=1e-4)


def test_a_refused_item_is_named_by_its_place_among_all(url: str) -> None:
    with pytest.raises(Refused, match=rf"input\[{ITEMS_AT_ONCE + 1}\]: the text is empty"):
        Client(url).embed(["红色"] * (ITEMS_AT_ONCE + 1) + [" "])


def test_awaited_it_answers_the_same(url: str, release: Release) -> None:
    picture = release.store.image_bytes(0)

    async def ask_all() -> tuple:
        async with AsyncClient(url) as client:
            return await asyncio.gather(
                client.search("红色", limit=3), client.search(image=picture), client.classify(picture, ["红色", "圆形"])
            )

    by_text, by_picture, judged = asyncio.run(ask_all())
    client = Client(url)
    assert by_text == client.search("红色", limit=3) and len(by_text.hits) == 3
    assert by_picture.hits[0].image_id == release.store.image_ids[0]
    assert {one.label for one in judged} == {"红色", "圆形"}


def test_what_may_do_better_is_asked_again_after_a_pause_and_as_late_as_it_was_told() -> None:
    with failing((503, {"Retry-After": "1"}), (502, {}), (200, {})) as (address, asked):
        assert Client(address).search("猫").release == "r"
    first, second = np.diff(asked)
    assert first >= 1 and second >= 0.2


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_what_will_be_no_better_is_asked_once(status: int) -> None:
    with failing((status, {})) as (address, asked), pytest.raises(Refused, match="not now"):
        Client(address).search("猫")
    assert len(asked) == 1


def test_no_call_lasts_longer_than_its_deadline() -> None:
    with failing((503, {"Retry-After": "60"})) as (address, asked), pytest.raises(Unanswered, match="not now"):
        Client(address, deadline=5).search("猫")
    assert len(asked) == 1
    with pytest.raises(Unanswered, match=r"no server answers at http://127\.0\.0\.1:9"):
        Client("http://127.0.0.1:9").search("猫")


def test_what_can_be_no_question_is_refused_with_the_reason_before_it_is_asked(tmp_path: Path) -> None:
    client: Any = Client("http://127.0.0.1:9")  # its methods are given what their types forbid
    picture, nobody = b"a picture", tmp_path / "red.jpg"
    for call, said in (
        (lambda: client.search(image=b""), "image: the picture is empty"),
        (lambda: client.search(image="red.jpg"), r"image: a picture's bytes are wanted, not a str; .*read_bytes"),
        (lambda: client.search(image=nobody), "image: a picture's bytes are wanted, not a PosixPath"),
        (lambda: client.search(nobody), "text: a str is wanted, not a PosixPath"),
        (lambda: client.classify(b"", ["猫"]), "image: the picture is empty"),
        (lambda: client.classify(picture, "猫狗"), r"labels: a list is wanted, not a str"),
        (lambda: client.classify(picture, []), "labels: there is none in it"),
        (lambda: client.classify(picture, ["猫"], "{}的照片"), "templates: a list is wanted, not a str"),
        (lambda: client.embed([]), "items: there is none in it"),
        (lambda: client.embed("一只猫"), "items: a list is wanted, not a str"),
        (lambda: client.embed(picture), "items: a list is wanted, not a bytes"),
        (lambda: client.embed(["猫", nobody]), r"input\[1\]: a picture's bytes are wanted, not a PosixPath"),
        (lambda: client.embed(["猫", b""]), r"input\[1\]: the picture is empty"),
    ):
        with pytest.raises(Refused, match=said):
            call()


def test_a_reason_that_names_no_item_is_told_as_it_is() -> None:
    with (
        failing((400, {}), message="input.str: no string; input.list[str]: too short") as (address, _),
        pytest.raises(Refused, match=r"^input\.str: no string; input\.list\[str\]: too short$"),
    ):
        Client(address).embed(["猫"])


def test_a_key_is_stripped_and_never_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with failing((200, {})) as (address, _):
        assert Client(address, key=" clip-secret\n").search("猫").release == "r"
    for key in ("clip-sec\nret", "clip-sécret", "clip-密"):
        with pytest.raises(UserError, match=r"^the key \(CLIP_KEY\) has signs that no key has; copy it again$"):
            Client("http://127.0.0.1:9", key=key)


def test_the_address_may_end_in_a_slash_and_begins_with_http() -> None:
    with failing((200, {})) as (address, _):
        assert Client(f"{address}/").search("猫").release == "r"
    with pytest.raises(UserError, match=r"^localhost:8731: http:// or https:// is wanted before it$"):
        Client("localhost:8731")


def test_who_has_a_wrong_key_is_not_told_to_set_one() -> None:
    refusal = {"message": "a key is wanted", "type": "key"}
    with failing((401, {}), message=refusal) as (address, _):
        with pytest.raises(Refused, match=rf"^the key that is set \(CLIP_KEY\) is not known at {address}"):
            Client(address, key="clip-other").search("猫")
        with pytest.raises(Refused, match=r"^a key is wanted; set CLIP_KEY$"):
            Client(address).search("猫")


def ask(url: str, query: str, lines: bytes = b"", *more: str) -> tuple[int, list[list[str]], str]:
    """The command's exit code, the fields of the lines that it prints, and what it says besides."""
    command = [sys.executable, "-m", "clip_core.serve.client", query, "--top", "1", "--url", url, *more]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, input=lines, capture_output=True)
    return done.returncode, [line.split("\t") for line in done.stdout.decode().splitlines()], done.stderr.decode()


def test_of_a_folder_all_pictures_below_are_searched_with_and_the_refused_are_named(
    url: str, release: Release, tmp_path: Path
) -> None:
    picture, ids = release.store.image_bytes, release.store.image_ids
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.png").write_bytes(picture(0)[:60])
    (tmp_path / "b.PNG").write_bytes(picture(0))
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "inner" / "c.png").write_bytes(picture(1))
    for passed_over in (".DS_Store", ".hidden.png", "notes.txt"):
        (tmp_path / passed_over).write_bytes(b"no picture")
    code, found, said = ask(url, str(tmp_path))
    assert (code, [name for name, _ in found]) == (0, ["b.PNG", "inner/c.png"])
    assert ids[0] in found[0][1] and ids[1] in found[1][1]
    broken, empty, gone = said.splitlines()
    assert broken.startswith(f"left out: {tmp_path}/a.png: image: broken picture")
    assert empty == f"left out: {tmp_path}/empty.jpg: image: the picture is empty"
    assert gone == f"left out: {tmp_path}/gone.jpg: No such file or directory"


def test_where_nothing_is_left_to_search_with_the_command_fails(url: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    code, found, said = ask(url, str(tmp_path))
    assert (code, found) == (2, [])
    assert re.match(rf"error: {tmp_path}: with none of its 0 files \*\.bmp, .* can be searched\n$", said)
    assert ask(url, "-", b"\n") == (2, [], "error: -: with none of its 0 lines can be searched\n")
    assert ask(url, "") == (2, [], "error: item 0: the text is empty\n")  # and not the working directory
    assert ask(url, "-", b"\xff\n")[2].endswith("error: -: with none of its 1 lines can be searched\n")


def test_what_would_fail_for_all_of_a_folder_is_said_once(url: str, release: Release, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(release.store.image_bytes(0))
    code, _, said = ask(url, str(tmp_path), b"", "--gallery", "other")
    assert (code, said.count("\n")) == (2, 1) and "no release" in said and "'other'" in said


@pytest.mark.parametrize("name", ["nosuch.png", "nosuch.JPG", "nosuch/"])
def test_a_picture_or_folder_that_is_not_there_is_no_text(name: str) -> None:
    assert ask("http://127.0.0.1:9", name) == (2, [], f"error: {name}: no such picture or folder\n")


def test_of_the_lines_the_blank_are_passed_over_and_the_refused_named_by_their_numbers(url: str) -> None:
    lines = "红色\n\n  \r\n" + "长" * 6_000 + "\n圆形\r\n"
    code, found, said = ask(url, "-", lines.encode() + b"\xff\xfe\n")
    assert (code, [name for name, _ in found]) == (0, ["红色", "圆形"])
    long, no_text = said.splitlines()
    assert long.startswith("left out: line 4: ") and "长长长" not in long
    assert no_text == "left out: line 6: not UTF-8"


def test_who_stops_reading_ends_the_command_quietly(url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clip_core.serve.client", "-", "--top", "1", "--url", url],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.close()
    assert process.communicate("红色\n圆形\n".encode())[1] == b""


def test_the_command_takes_a_picture_a_folder_and_lines(url: str, release: Release, tmp_path: Path) -> None:
    for place in (0, 1):
        (tmp_path / f"{place}.png").write_bytes(release.store.image_bytes(place))

    def rows(query: str, lines: str = "") -> list[list[str]]:
        command = [sys.executable, "-m", "clip_core.serve.client", query, "--top", "1", "--url", url]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, input=lines, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split("\t") for line in done.stdout.splitlines()]

    ids = release.store.image_ids
    assert ids[0] in rows(str(tmp_path / "0.png"))[0][0]
    (zero, zeroth), (one, first) = rows(str(tmp_path))
    assert (zero, one) == ("0.png", "1.png") and ids[0] in zeroth and ids[1] in first
    assert [name for name, _ in rows("-", "红色\n圆形\n")] == ["红色", "圆形"]
    assert len(rows("红色圆形" * 100)) == 1  # longer than the name of a file may be


# Bulk.


def test_texts_of_a_parquet_file_become_features_and_refused_rows_their_reasons(
    url: str, release: Release, tmp_path: Path
) -> None:
    texts = [*release.truth.texts[:5], "  ", None, *release.truth.texts[5:8]]
    pq.write_table(pa.table({"caption": texts, "number": range(10)}), tmp_path / "in.parquet")
    assert bulk.run(tmp_path / "in.parquet", tmp_path / "out", url, "caption", rows=4) == (8, 2)
    table = pa.concat_tables(pq.read_table(file) for file in sorted((tmp_path / "out").glob("part-*")))
    assert table["id"].to_pylist() == ["0", "1", "2", "3", "4", "7", "8", "9"]
    assert set(table["release"].to_pylist()) == {release.id}
    assert np.array(table["features"].to_pylist()) == pytest.approx(release.truth.text_features[:8], abs=1e-4)
    (rejected,) = (tmp_path / "out").glob("rejected-*")
    assert pq.read_table(rejected).to_pylist() == [
        {"id": "6", "reason": "nothing there"},
        {"id": "5", "reason": "the text is empty"},
    ]


def test_a_stopped_bulk_goes_on_with_the_parts_that_are_missing(url: str, release: Release, tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    (pictures / "inner").mkdir(parents=True)
    for place in range(5):
        (pictures / "inner" / f"{place}.png").write_bytes(release.store.image_bytes(place))
    (pictures / "z.png").write_bytes(b"no picture")
    with (pictures / "a film.mp4").open("wb") as film:
        film.truncate(2**33)  # is not read
    assert bulk.run(pictures, out, url, rows=2) == (5, 2)
    (row,) = pq.read_table(out / "rejected-00000.parquet").to_pylist()
    assert row == {"id": "a film.mp4", "reason": "8,589,934,592 bytes; 12,582,912 are allowed"}
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    states = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*")}
    (out / "part-00001.parquet").unlink()
    assert bulk.run(pictures, out, url, rows=2) == (5, 2)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == whole
    again = {file.name for file in out.glob("part-*") if file.stat().st_mtime_ns != states[file.name]}
    assert again == {"part-00001.parquet"}
    (pictures / "new.png").write_bytes(release.store.image_bytes(6))
    with pytest.raises(UserError, match="as it was; name another folder, or remove it"):
        bulk.run(pictures, out, url, rows=2)


def test_bulk_says_what_it_can_not_read(url: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["猫"], "number": [1]}), tmp_path / "in.parquet")
    (tmp_path / "text").write_text("猫", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name, column, said in (
        ("none", None, "none: no such folder or parquet file"),
        ("in.parquet", None, "--column None: columns of texts or pictures are caption"),
        ("in.parquet", "number", "--column number: columns of texts"),
        ("text", "caption", "text: not a parquet file"),
        ("empty", None, "empty: the folder is empty"),
    ):
        with pytest.raises(UserError, match=said):
            bulk.run(tmp_path / name, tmp_path / "out", url, column)


def test_bulk_writes_nothing_among_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(b"a picture")
    for out in ("in", "in/out", "out/../in"):
        with pytest.raises(UserError, match=rf"{out}: lies in .*in, .*; name a folder outside"):
            bulk.run(tmp_path / "in", tmp_path / out, "http://127.0.0.1:9")
    assert [file.name for file in (tmp_path / "in").iterdir()] == ["0.png"]


def test_bulk_fails_where_every_row_is_rejected(url: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "clip_core.serve.bulk", str(tmp_path / "in"), str(tmp_path / "out"), "--url", url]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/out: features of 0 rows; 1 rejected, with reasons in rejected-*")
