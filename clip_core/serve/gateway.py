"""`make serve`: a local Triton with the release that `dvc repro` made, and the page, opened in the browser.

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
import webbrowser
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.request import ProxyHandler, build_opener

from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write
from clip_core.serve.client import STATE, read_state
from clip_core.serve.model_repository import PUBLIC
from clip_core.serve.page import make_app
from clip_core.serve.release import new_live_repository
from clip_core.serve.triton import triton_server


class Running(NamedTuple):
    address: str
    states: dict[str, str]


def serve(repository: Path, images: Path, port: int, opens_browser: bool) -> None:
    """Serves until it is interrupted; ValueError when something is missing or in use."""
    from clip_core.data.store import open_store

    if not repository.is_dir():
        raise UserError(
            f"{repository}: no model repository yet; `make run` makes that of the pipeline, and "
            "`python -m clip_core.serve.gallery` one of any weights folder"
        )
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
                if opens_browser and _has_user():
                    threading.Thread(target=_open_browser, args=(url,), daemon=True).start()
                with TemporaryDirectory() as releases:
                    _add_release(repository, store.folder, Path(releases))
                    _run_gateway(server.address, Path(releases), listener)
        finally:
            STATE.unlink(missing_ok=True)
            shutil.rmtree(live, ignore_errors=True)


def _add_release(repository: Path, images: Path, releases: Path) -> None:
    """Adds the release in `repository` to the folder that the page reads."""
    release = (repository / "clip_text" / "1" / "release.txt").read_text(encoding="utf-8").strip()
    galleries = releases / release / "galleries"
    galleries.mkdir(parents=True)
    (galleries / "test").symlink_to(images.absolute())


def _run_gateway(address: str, releases: Path, listener: socket.socket) -> None:
    import uvicorn

    app = make_app(Running(address, dict.fromkeys(PUBLIC, "ok")), releases)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[listener])


def _has_user() -> bool:
    """Whether somebody sits here: at a terminal with a display."""
    has_display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(has_display)


def _open_browser(url: str) -> None:
    with suppress(OSError):  # stopped before it answered
        build_opener(ProxyHandler({})).open(url).close()  # the port is open already, so this waits for the page
        webbrowser.open(url)


@contextmanager
def _only_one() -> Generator[None]:
    STATE.parent.mkdir(exist_ok=True)
    lock = os.open(STATE.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        if not STATE.exists():
            raise UserError("another `make serve` is starting in this project; it will name its page") from None
        raise UserError(f"`make serve` runs in this project already: {read_state()['url']}") from None
    finally:
        os.close(lock)


@contextmanager
def _listen(port: int) -> Generator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
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
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))  # else nothing would be tidied up
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would hand down "ignore"
    with told_to_the_user(OSError):
        try:
            serve(arguments.repository, arguments.images, arguments.port, not arguments.no_browser)
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
