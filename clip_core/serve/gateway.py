"""`make serve`: a local Triton with the release that `serving/current` names, and the page, opened in the browser.

The page and other programs talk to this gateway, the gateway to Triton over gRPC. Triton listens on loopback only, and
so does the gateway unless `--host` says otherwise.
"""

import argparse
import os
import resource
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, build_opener

from clip_core.all_params import load_params
from clip_core.config.params import Params
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.project import project_root, serving_folder
from clip_core.serve import releases, samples
from clip_core.serve.answers import Answers
from clip_core.serve.app import HOST_NAMES, make_app
from clip_core.serve.canary import Canary
from clip_core.serve.client import read_url
from clip_core.serve.door import Door, add_arguments, door_of, listen, url_of
from clip_core.serve.logs import log_to_stderr
from clip_core.serve.supervisor import GaveUp, Supervisor
from clip_core.serve.traces import tracer_of_environment
from clip_core.serve.upstream import PATIENCE, Upstream

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

MAX_FILES = 2**16  # each connection is one; whoever waits with many keeps others out when there are no more
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
asked_to_end: list[int] = []  # the signals; Python loses an exception that one raises in a callback, as imports have


def serve(serving: Path, door: Door, opens_browser: bool, params: Path | None) -> None:
    """Serves until it is interrupted; UserError when something is missing or in use, GaveUp when repairs fail.

    Of what is asked it keeps what the file of params allows; without one, nothing.
    """
    newest = next(iter(releases.added(serving)), None)
    if newest is None or releases.current(serving) is None:
        raise UserError(
            f"{serving}: no release to serve yet; `make run` makes that of the pipeline, and "
            "`python -m clip_core.serve.gallery` one of any weights folder"
        )
    allowed, tracer = load_params(params) if params else None, tracer_of_environment()
    with _only_one(serving), listen(door) as listener:
        url = url_of(door, listener)
        supervisor = Supervisor(serving, url)
        print("Triton loads the models ...", flush=True)
        try:
            supervisor.start()
            print(releases.announcement(serving, newest), flush=True)
            print(f"the page: {url}\nTriton (gRPC): {supervisor.address}\nCtrl-C stops everything", flush=True)
            if opens_browser and _has_user():
                threading.Thread(target=_open_browser, args=(url,), daemon=True).start()
            _run_gateway(supervisor, listener, door, allowed, tracer)
        finally:
            (serving / "running.json").unlink(missing_ok=True)
            supervisor.stop()


def _run_gateway(
    supervisor: Supervisor, listener: socket.socket, door: Door, params: Params | None, tracer: "Tracer | None"
) -> None:
    import uvicorn

    serving, sampler = supervisor.serving, None
    if params:
        samples.tidy(serving, params.watch)
        if params.watch.keep != "nothing":
            sampler = samples.Sampler(serving, params.watch, lambda: supervisor.address)
    canary = Canary(serving, params.gateway.canary if params else None)
    upstream = Upstream(supervisor, Answers(params.gateway.kept_answers if params else 0), canary, tracer)
    app = make_app(upstream, serving / "releases", (*HOST_NAMES, *door.names), door.keys, sampler)

    class Server(uvicorn.Server):
        """At SIGTERM it is not ready, but takes requests for a while: until those who send them know."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if sig != signal.SIGTERM or app.state.is_draining:
                super().handle_exit(sig, frame)
                return
            app.state.is_draining = True
            end = threading.Timer(door.drain, super().handle_exit, (sig, frame))
            end.daemon = True
            end.start()

    cert, key = door.tls or (None, None)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=cert,
        ssl_keyfile=key,
        timeout_graceful_shutdown=int(PATIENCE) + 5,  # its last requests have their time, and each an answer
    )
    server = Server(config)
    for number in ENDING:
        signal.signal(number, server.handle_exit)
    server.should_exit = bool(asked_to_end)
    stopped, given_up = threading.Event(), []

    def watch() -> None:
        try:
            supervisor.watch(stopped)
        except BaseException as error:  # whatever it is, nobody looks after the server any more
            given_up.append(error)
            server.should_exit = True

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        server.run(sockets=[listener])
    finally:
        stopped.set()
        watcher.join()
    if given_up:
        raise given_up[0]


def _end(number: int, _frame: FrameType | None) -> None:
    asked_to_end.append(number)
    raise KeyboardInterrupt  # so that all is tidied up


def _has_user() -> bool:
    """Whether somebody sits here: at a terminal with a display."""
    has_display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(has_display)


def _open_browser(url: str) -> None:
    with suppress(OSError):  # stopped before it answered
        build_opener(ProxyHandler({})).open(url).close()  # the port is open already, so this waits for the page
        webbrowser.open(url)


@contextmanager
def _only_one(serving: Path) -> Generator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(releases.only_gateway(serving))
        except releases.Held as held:
            try:
                where = read_url(serving)
            except UserError:
                where = "it is starting and will name its page"
            raise UserError(f"{held}: {where}") from None
        (serving / "running.json").unlink(missing_ok=True)  # of a run that was killed
        yield


def main() -> None:
    set_switches()
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.serve.gateway", description="the page and Triton behind it"
    )
    add_arguments(parser)
    parser.add_argument("--json-logs", action="store_true", help="a line of JSON for each request and message")
    parser.add_argument("--serving", type=Path, help="the folder of releases; default: the project's")
    parser.add_argument(
        "--params",
        type=Path,
        help="its `watch` and `gateway` count; default: the project's params.yaml",
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    arguments = parser.parse_args()
    for number in ENDING:  # SIGINT too: a shell's background job would hand down "ignore"
        signal.signal(number, _end)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, MAX_FILES), most))  # a shell gives 1,024
    with told_to_the_user(OSError):
        serving = serving_folder(arguments.serving)
        log_to_stderr(arguments.json_logs)
        try:
            params = arguments.params or (None if arguments.serving else project_root() / "params.yaml")
            with suppress(KeyboardInterrupt):
                serve(serving, door_of(arguments), not arguments.no_browser, params)
            print("stopped")
        except GaveUp as error:
            sys.exit(f"error: Triton could not be kept alive: {error}. Its log: {serving / 'triton.log'}")


if __name__ == "__main__":
    main()
