"""`make serve`: a local Triton with the release that `dvc repro` made, and the page where one types Chinese.

The page talks to this gateway, the gateway to Triton over gRPC; both listen on loopback only.
"""

import argparse
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clip_core.env import set_switches
from clip_core.files import atomic_write
from clip_core.serve.client import STATE, read_state
from clip_core.serve.release import new_live_repository
from clip_core.serve.triton import connect, triton_server

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tritonclient.grpc import InferenceServerClient

    from clip_core.data.store import Store

PAGE = Path(__file__).with_name("page.html")
# Nothing from outside: neither scripts nor fonts nor pictures.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:"
)
MAX_TOP = 100  # the largest index.top_k of params.yaml; a release gives its own top_k at most
MEDIA_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


class Pictures(NamedTuple):
    store: "Store"
    places: dict[str, int]  # of the picture's id
    names: dict[str, str]


class Gallery:
    """The pictures of the release that answers: they are read anew when another release begins to answer.

    Until then they are those of before, also when `dvc repro` replaces the store's files.
    """

    def __init__(self, store: "Store") -> None:
        self.pictures = _open_pictures(store)
        self.release: str | None = None  # the first to answer is the one that the store belongs to
        self.one_opens = threading.Lock()

    def of(self, release: str) -> Pictures:
        """The release's pictures."""
        from clip_core.data.store import open_store

        with self.one_opens:
            if self.release not in (None, release):
                self.pictures = _open_pictures(open_store(self.pictures.store.folder))
            self.release = release
            return self.pictures


def make_app(client: "InferenceServerClient", store: "Store") -> "FastAPI":
    """The web application: the page, the search behind it and the gallery's pictures."""
    from fastapi import FastAPI, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, JSONResponse, Response
    from tritonclient.utils import InferenceServerException

    from clip_core.serve.queries import search

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its own pages load scripts from a CDN
    gallery = Gallery(store)

    @app.exception_handler(ValueError)
    def refuse(_request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    def refuse_parameters(_request: Request, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"error": "; ".join(wrong)}, status_code=400)

    @app.exception_handler(InferenceServerException)
    def report_failure(_request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"Triton does not answer: {error}"}, status_code=503)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    @app.get("/api/search")
    def hits(text: str, top: int = Query(10, ge=1, le=MAX_TOP)) -> dict:
        started = time.perf_counter()
        (found,) = search(client, [text])
        names = gallery.of(found.release).names
        rows = [
            {"image_id": image_id, "score": round(float(score), 4), "name": names.get(image_id, "")}
            for image_id, score in zip(found.ids, found.scores, strict=True)
        ]
        milliseconds = round(1000 * (time.perf_counter() - started), 1)
        return {"text": text, "release": found.release, "milliseconds": milliseconds, "hits": rows[:top]}

    @app.get("/api/health")
    def health() -> dict:
        return {"status": "ok", "release": search(client, ["一只猫"])[0].release}  # a stub that died still looks ready

    @app.get("/images/{image_id:path}")
    def image(image_id: str) -> Response:
        pictures = gallery.pictures
        if image_id not in pictures.places:
            return JSONResponse({"error": f"no picture {image_id} in the gallery"}, status_code=404)
        data = pictures.store.image_bytes(pictures.places[image_id])
        kind = next((kind for start, kind in MEDIA_TYPES.items() if data.startswith(start)), "application/octet-stream")
        return Response(data, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    return app


def serve(repository: Path, images: Path, port: int) -> None:
    """Serves until it is interrupted; ValueError when something is missing or in use."""
    from clip_core.data.store import open_store

    if not repository.is_dir():
        raise ValueError(f"{repository}: no model repository yet; `make run` makes it")
    store = open_store(images)
    live = repository.parent / "live" / "serve"
    with _only_one(), _listen(port) as listener:
        shutil.rmtree(live, ignore_errors=True)  # of a run that was killed
        models = new_live_repository(repository, live / "repository")
        print("Triton loads the models ...", flush=True)
        try:
            with triton_server(live / "repository", models, live / "triton.log") as server:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                state = {"url": url, "triton": server.address, "live": str(server.repository.absolute())}
                atomic_write(STATE, json.dumps(state, indent=1) + "\n")
                print(f"the page: {url}\nTriton (gRPC): {server.address}\nCtrl-C stops everything", flush=True)
                _run_gateway(server.address, store, listener)
        finally:
            STATE.unlink(missing_ok=True)
            shutil.rmtree(live, ignore_errors=True)


def _run_gateway(address: str, store: "Store", listener: socket.socket) -> None:
    import uvicorn

    client = connect(address)
    try:
        config = uvicorn.Config(make_app(client, store), log_level="warning", timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        client.close()


def _open_pictures(store: "Store") -> Pictures:
    for first in store.first_of_shard:
        store.image_bytes(first)  # opens the shard, which then stays what it is
    return Pictures(store, {image_id: place for place, image_id in enumerate(store.image_ids)}, _names(store))


def _names(store: "Store") -> dict[str, str]:
    """The first Chinese name (or caption) of every picture."""
    rows = store.pairs.query("language == 'zh' and caption_kind != 'keyword'").drop_duplicates("image_id")
    return dict(zip(rows.image_id, rows.caption, strict=True))


@contextmanager
def _only_one() -> Generator[None]:
    STATE.parent.mkdir(exist_ok=True)
    lock = os.open(STATE.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        if not STATE.exists():
            raise ValueError("another `make serve` is starting in this project; it will name its page") from None
        raise ValueError(f"`make serve` runs in this project already: {read_state()['url']}") from None
    finally:
        os.close(lock)


@contextmanager
def _listen(port: int) -> Generator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"port {port} can not be used ({error.strerror}); stop what listens there, or take another port: "
                f"python -m clip_core.serve.gateway --port {port + 1} (0: any free one)"
            ) from None
        listener.listen()
        yield listener


def main() -> None:
    set_switches()
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.serve.gateway", description="the page and Triton behind it"
    )
    parser.add_argument("--port", type=int, default=8000, help="of the page; 0: any free one")
    parser.add_argument("--repository", type=Path, default=Path("serving/repository"))
    parser.add_argument("--images", type=Path, default=Path("data/packed/test"), help="the store that was indexed")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))  # else nothing would be tidied up
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would hand down "ignore"
    try:
        serve(arguments.repository, arguments.images, arguments.port)
    except KeyboardInterrupt:
        print("stopped")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
