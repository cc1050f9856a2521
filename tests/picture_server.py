"""A real HTTP server on loopback that answers as servers on the web do, good and bad."""

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tests.small_raw import drawing, encoded


class PictureServer(ThreadingHTTPServer):
    """`/<n>.png` is a picture; what other paths do stands in Handler."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: Counter[str] = Counter()
        self.hosts: set[str] = set()
        self.closing = threading.Event()
        self.failing: set[str] = set()  # paths that are answered with 503

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gives up is what is tested."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, path = self.of(), unquote(self.path)
        server.asked[path] += 1
        server.hosts.add(self.headers["Host"])
        if path in server.failing:
            self.answer(503)
        elif path.startswith("/to/"):
            self.answer(302, location=path.removeprefix("/to/"))
        elif path.endswith(".png"):
            number = int(path.rpartition("/")[2].removesuffix(".png"))
            self.answer(200, encoded(drawing(number)))
        elif path == "/round":
            self.answer(302, location="/round")
        elif path == "/flaky":  # the third time it works
            self.answer(200 if server.asked[path] > 2 else 503, encoded(drawing(50)))
        elif path == "/packed":
            self.answer(200, b"\x1f\x8b", encoding="gzip")
        elif path == "/empty":
            self.answer(200)
        elif path == "/endless":
            self.drip(b"x" * 2**16, pause=0)
        elif path == "/slow":
            self.drip(b"x", pause=0.05)
        elif path == "/slow-head":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self.drip(b"x", pause=0.05, with_head=False)
        elif path == "/hang":
            server.closing.wait(60)
        elif path == "/hang-up":
            self.answer(200, b"half", length=1000)
        elif path == "/large":
            self.answer(200, b"", length=2**40)
        else:
            self.answer(404, b"no such picture")

    def answer(
        self, status: int, body: bytes = b"", length: int | None = None, location: str = "", encoding: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if location:
            self.send_header("Location", location)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, some: bytes, pause: float, with_head: bool = True) -> None:
        if with_head:
            self.send_response(200)
            self.end_headers()
        while not self.of().closing.wait(pause):
            self.wfile.write(some)
            self.wfile.flush()

    def of(self) -> PictureServer:
        assert isinstance(self.server, PictureServer)
        return self.server

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@contextmanager
def picture_server() -> Generator[PictureServer]:
    with PictureServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
