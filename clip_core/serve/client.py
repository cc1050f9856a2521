"""Asks a running `make serve` over HTTP, with Python alone: `python -m clip_core.serve.client "一只猫"`.

    client = Client("http://127.0.0.1:8000")  # or AsyncClient, whose methods are awaited
    client.search("一只猫"); client.embed(["一只猫", picture]); client.classify(picture, ["猫", "狗"])

Pictures are encoded bytes. Over gRPC the same questions go to Triton itself: `clip_core/serve/queries.py`.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import re
import sys
import time
from array import array
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from clip_core.errors import UserError, told_to_the_user
from clip_core.project import serving_folder
from clip_core.serve.picture_files import KINDS, SUFFIXES, in_utf8, is_picture

TIMEOUT = 30.0  # seconds
KEY = "CLIP_KEY"  # the variable with the API key, where the server wants one
START = "start one in another terminal: `make serve`, or what `python -m clip_core.serve.gallery` said at its end"
MODEL = "chinese-clip"
ATTEMPTS = 4
PAUSE = 0.2  # seconds before the second attempt, twice as many before each later one
TRANSIENT = (429, 502, 503, 504)
BAD_QUESTION, NO_KEY, ANOTHER_RELEASE, TOO_LARGE = 400, 401, 409, 413
ITEMS_AT_ONCE, BYTES_AT_ONCE = 64, 12 * 2**20  # of a request for features; base64 makes 16 MiB of it
ROUNDS = 3  # in which one call may meet a rollout

P = ParamSpec("P")
T = TypeVar("T")


class Unanswered(UserError):
    """No answer in time, however often it was asked; a later moment may do."""


class Refused(UserError):
    """The reason why this question is not answered, now or later: the server's, or that it can be none."""

    def __init__(self, message: str, status: int = BAD_QUESTION) -> None:
        super().__init__(message)
        self.status = status


class Hit(NamedTuple):
    image_id: str
    score: float  # the cosine
    probability: float | None  # that it matches; None: no calibration, or not by a text
    name: str
    image: str  # the picture's path at the server


class Found(NamedTuple):
    release: str
    gallery: str
    hits: list[Hit]  # the nearest first


class Embedded(NamedTuple):
    release: str
    features: list[array]  # of each item, of length 1; numpy takes them as they are


class Judged(NamedTuple):
    label: str
    score: float
    probability: float | None  # that it is right, whatever the others are
    share: float | None  # its probability if just one of them is right


class Client:
    """The gateway at `url`. Each call ends within `deadline` seconds; what may do better later is asked again.

    Calls raise Refused or Unanswered. Threads may share it.
    """

    def __init__(self, url: str, key: str | None = None, deadline: float = TIMEOUT) -> None:
        if not url.lower().startswith(("http://", "https://")):
            raise UserError(f"{url}: http:// or https:// is wanted before it")
        self.url, self.key, self.deadline = url.rstrip("/"), (key or os.environ.get(KEY, "")).strip(), deadline
        if not (self.key.isascii() and self.key.isprintable()) and self.key:  # without the key, which is a secret
            raise UserError(f"the key ({KEY}) has signs that no key has; copy it again")
        self._opener = build_opener(ProxyHandler({}))  # the server is near, whatever proxy is set

    def search(
        self, text: str | None = None, image: bytes | None = None, limit: int = 10, gallery: str | None = None
    ) -> Found:
        """The pictures nearest to a text, a picture, or both."""
        if not isinstance(text, str | None):
            raise Refused(f"text: a str is wanted, not a {type(text).__name__}")
        url = None if image is None else _data_url(_checked("image", image))
        question = {"text": text, "image": url, "limit": limit, "gallery": gallery}
        answer = self._ask("/v1/search", question, self._end())
        return Found(answer["release"], answer["gallery"], [Hit(**hit) for hit in answer["hits"]])

    def classify(self, image: bytes, labels: Sequence[str], templates: Sequence[str] | None = None) -> list[Judged]:
        """The labels for the picture, the best first; `templates` with {} (None: our general ones)."""
        question = {"image": _data_url(_checked("image", image)), "labels": _listed("labels", labels)}
        if templates is not None:
            question["templates"] = _listed("templates", templates)
        return [Judged(**one) for one in self._ask("/v1/classify", question, self._end())["labels"]]

    def embed(self, items: Sequence[str | bytes], release: str | None = None) -> Embedded:
        """The features of texts and pictures, all of one release: that named, or the one that serves.

        They go in requests of a fitting size. Refused names an item as `input[NUMBER]: `.
        """
        items, end = _listed("items", items), self._end()
        for place, item in enumerate(items):
            if not isinstance(item, str):
                _checked(f"input[{place}]", item)
        for _ in range(ROUNDS):
            try:
                return self._embed(items, release, end)
            except Refused as error:
                if release or error.status != ANOTHER_RELEASE:
                    raise
        raise Unanswered("the release that serves changed again and again; try again")

    def _embed(self, items: Sequence[str | bytes], release: str | None, end: float) -> Embedded:
        features: list[array] = []
        for some in _in_requests(items):
            given = [item if isinstance(item, str) else _data_url(item) for item in some]
            question = {"model": release or MODEL, "input": given, "encoding_format": "base64"}
            try:
                answer = self._ask("/v1/embeddings", question, end)
            except Refused as error:
                if named := re.match(r"input\[(\d+)\](?=: )", str(error)):  # one of these items
                    number, reason = len(features) + int(named[1]), str(error)[named.end() :]
                    raise Refused(f"input[{number}]{reason}", error.status) from None
                if error.status == TOO_LARGE and len(some) == 1:
                    raise Refused(f"input[{len(features)}]: {error}", error.status) from None
                raise
            release = answer["model"]
            features += [array("f", base64.b64decode(one["embedding"])) for one in answer["data"]]
        return Embedded(release or "", features)

    def _end(self) -> float:
        return time.monotonic() + self.deadline

    def _ask(self, path: str, question: dict | None, end: float) -> dict:
        """The answer's JSON; `question` is that of a POST."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        body = None
        if question is not None:
            body = json.dumps({name: value for name, value in question.items() if value is not None}).encode()
        for attempt in range(ATTEMPTS):
            request = Request(self.url + path, body, headers)
            try:
                with self._opener.open(request, timeout=max(0.1, end - time.monotonic())) as answer:
                    return json.load(answer)
            except HTTPError as error:
                failure = _reason(error)
                if error.code == NO_KEY:
                    unknown = f"the key that is set ({KEY}) is not known at {self.url}; who serves there makes one"
                    failure = unknown if self.key else f"{failure}; set {KEY}"
                if error.code not in TRANSIENT:
                    raise Refused(failure, error.code) from None
                least = float(error.headers.get("Retry-After", 0))
            except (URLError, HTTPException, OSError) as error:  # refused, reset, timed out
                failure, least = f"no server answers at {self.url} ({error}); {START}", 0.0
            pause = max(least, PAUSE * 2**attempt * random.uniform(0.5, 1.5))
            if attempt == ATTEMPTS - 1 or time.monotonic() + pause > end:
                break
            time.sleep(pause)
        raise Unanswered(failure)


class AsyncClient:
    """A `Client` whose methods are awaited, with so many requests at the same time; `async with` closes it.

    A call that is cancelled is not waited for, but its request may still be answered.
    """

    def __init__(self, url: str, key: str | None = None, deadline: float = TIMEOUT, at_once: int = 16) -> None:
        client = Client(url, key, deadline)
        self._threads = ThreadPoolExecutor(at_once)
        self.search = self._awaited(client.search)
        self.classify = self._awaited(client.classify)
        self.embed = self._awaited(client.embed)

    def _awaited(self, call: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        async def awaited(*given: P.args, **named: P.kwargs) -> T:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *given, **named))

        return awaited

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def ask(url: str, text: str, top: int, gallery: str | None = None) -> dict:
    """What the page is told: release, gallery, milliseconds and hits."""
    question = {"text": text, "top": top} | ({} if gallery is None else {"gallery": gallery})
    client = Client(url)
    try:
        query = urlencode(question)
    except UnicodeEncodeError:
        raise Refused("not UTF-8") from None
    return client._ask(f"/api/search?{query}", None, client._end())


def find_url(named: str | None, serving: Path | None) -> str:
    """The address that the user named, or else that of what serves from the folder, or from the project's."""
    if named:
        return named
    try:
        folder = serving_folder(serving)
    except UserError as error:
        raise UserError(f"{error}; to ask a server elsewhere: --url http://HOST:PORT") from None
    return read_url(folder)


def read_url(serving: Path) -> str:
    """The page of the `make serve` that serves from the folder `serving`."""
    try:
        return json.loads((serving / "running.json").read_text(encoding="utf-8"))["url"]
    except FileNotFoundError:
        raise UserError(f"{serving}: no server runs; {START}") from None


def _data_url(image: bytes) -> str:
    return f"data:image/any;base64,{base64.b64encode(image).decode()}"


def _checked(name: str, image: bytes) -> bytes:
    """The picture; Refused when it is none, or empty."""
    if not isinstance(image, bytes | bytearray | memoryview):
        kind = type(image).__name__
        raise Refused(f"{name}: a picture's bytes are wanted, not a {kind}; Path(FILE).read_bytes() gives a file's")
    if not image:
        raise Refused(f"{name}: the picture is empty")
    return image


def _listed(name: str, given: Sequence[T]) -> list[T]:
    """All of them; Refused when there is none, or it is one alone, whose letters or bytes are meant by nobody."""
    if isinstance(given, str | bytes):
        raise Refused(f"{name}: a list is wanted, not a {type(given).__name__}; put it into one")
    if not (listed := list(given)):
        raise Refused(f"{name}: there is none in it")
    return listed


def _in_requests(items: Sequence[str | bytes]) -> Iterator[Sequence[str | bytes]]:
    first, size = 0, 0
    for place, item in enumerate(items):
        size += len(item)
        if place > first and (place - first == ITEMS_AT_ONCE or size > BYTES_AT_ONCE):
            yield items[first:place]
            first, size = place, len(item)
    yield items[first:]


def _reason(error: HTTPError) -> str:
    try:
        answer = json.load(error)
        inner = answer["error"]  # under /v1 with what belongs to it, elsewhere the message alone
        message, kind = (inner["message"], inner["type"]) if isinstance(inner, dict) else (inner, answer["kind"])
        request_id = answer["id"]
    except (ValueError, KeyError, TypeError):  # not the gateway's own words
        address = error.url.partition("?")[0]
        return f"{address} answers {error.code} {error.reason}; the terminal of `make serve` says why"
    if kind == "overload":
        return f"the server is overloaded or not ready: {message}; try again in {error.headers['Retry-After']} s"
    if kind == "internal":
        return f"{message} (request {request_id})"
    return message


def _questions(named: str) -> tuple[str, Iterator[tuple[str, str, str | Path]]]:
    """Of what kind they are ("": it is one), and of each where it stands, its name and itself.

    They are the standard input's lines, the pictures of a folder and below, or what was named.
    """
    path = Path(named)
    if named == "-":
        lines = (line.decode(errors="surrogateescape").strip() for line in sys.stdin.buffer)
        return "lines", ((f"line {place}", line, line) for place, line in enumerate(lines, 1) if line)
    with suppress(OSError):  # longer than any file's name
        if named and path.is_dir():  # an empty text is no folder, though its path is the working directory
            files = sorted(file for file in path.rglob("*") if is_picture(file))
            return f"files {KINDS}", ((in_utf8(file), in_utf8(file.relative_to(path)), file) for file in files)
        if path.is_file():
            return "", iter([(named, named, path)])
    if named.endswith("/") or path.suffix.lower() in SUFFIXES:
        raise UserError(f"{named}: no such picture or folder")
    return "", iter([(named, named, named)])


def _hits(client: Client, question: str | Path, top: int, gallery: str | None) -> list[Hit]:
    if isinstance(question, Path):
        try:
            return client.search(image=question.read_bytes(), limit=top, gallery=gallery).hits
        except OSError as error:
            raise Refused(error.strerror or str(error)) from None
    return [Hit(**hit) for hit in ask(client.url, question, top, gallery)["hits"]]


@contextmanager
def _as_long_as_it_is_read() -> Generator[None]:
    """Ends the block quietly when nobody reads what it prints, as after `| head`."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which Python flushes once more at its end


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.client", description="finds pictures")
    parser.add_argument(
        "query",
        help=f"what they should show, in Chinese; a picture, or a folder of {KINDS}; -: a text a line of the input",
    )
    parser.add_argument("--top", type=int, default=5, help="how many pictures (default 5)")
    parser.add_argument("--gallery", help="which pictures; default: the release's first gallery")
    parser.add_argument("--serving", type=Path, help="the folder that it serves from; default: the project's")
    parser.add_argument("--url", help="of its page; default: what that folder says")
    arguments = parser.parse_args()
    num_found, num_searched, num_refused = arguments.top, 0, 0
    with told_to_the_user(), _as_long_as_it_is_read():
        kind, questions = _questions(arguments.query)
        client = Client(find_url(arguments.url, arguments.serving))
        for place, name, question in questions:
            try:
                hits = _hits(client, question, arguments.top, arguments.gallery)
            except Refused as error:
                if not kind or error.status not in (BAD_QUESTION, TOO_LARGE):  # no other would fare better
                    raise
                print(f"left out: {place}: {error}", file=sys.stderr, flush=True)
                num_refused += 1
                continue
            num_searched += 1
            num_found = min(num_found, len(hits))
            for hit in hits:
                probability = "" if hit.probability is None else f"  {100 * hit.probability:3.0f} %"
                before = f"{name}\t" if kind else ""
                print(f"{before}{hit.score:.4f}{probability}  {hit.image_id}  {hit.name}", flush=True)
        if not num_searched:
            raise UserError(f"{arguments.query}: with none of its {num_refused} {kind} can be searched")
    if num_found < arguments.top:
        limit = "index.top_k in params.yaml (--top-k of a gallery), or all there are"
        print(f"the release finds {num_found} pictures a text: {limit}", file=sys.stderr)


if __name__ == "__main__":
    main()
