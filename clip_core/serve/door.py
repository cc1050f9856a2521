"""Where the gateway listens, and to whom."""

import argparse
import socket
import ssl
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from clip_core.errors import UserError
from clip_core.serve.keys import Keys


class Door(NamedTuple):
    """Where the gateway listens, to whom, and how it closes."""

    host: str
    port: int
    names: Sequence[str]  # by which it is asked
    keys: Keys | None
    tls: tuple[Path, Path] | None  # certificate (and those it rests on) and key, as PEM; None: HTTP
    drain: float  # seconds between SIGTERM and the last request that is taken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those that say what a door is like."""
    parser.add_argument("--port", type=int, default=8000, help="of the page; 0: any free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all, which needs --keys")
    parser.add_argument("--name", action="append", default=[], help="by which it is asked, besides; several: again")
    parser.add_argument("--keys", type=Path, help="the file of API keys (python -m clip_core.serve.keys)")
    parser.add_argument("--tls-cert", type=Path, help="PEM file of a certificate, for HTTPS; with --tls-key")
    parser.add_argument("--tls-key", type=Path, help="PEM file of its key")
    parser.add_argument("--drain", type=float, default=1.0, help="seconds from SIGTERM on with requests still taken")


def door_of(arguments: argparse.Namespace) -> Door:
    """What the arguments say; UserError when strangers could come in."""
    host = arguments.host
    try:
        is_for_all = not ip_address(host).is_loopback
    except ValueError:
        raise UserError(f"--host {host}: an address is wanted, as 127.0.0.1, 0.0.0.0 or ::1") from None
    if is_for_all and arguments.keys is None:
        raise UserError(
            f"--host {host}: whoever reaches it might ask what they want; make a key for each who may "
            "(python -m clip_core.serve.keys keys.json NAME) and name the file: --keys keys.json"
        )
    keys = Keys(arguments.keys) if arguments.keys else None
    names = (_in_url(host), *map(str.lower, arguments.name))
    return Door(host, arguments.port, names, keys, _tls(arguments.tls_cert, arguments.tls_key), arguments.drain)


def _tls(cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UserError(f"--tls-cert {cert}, --tls-key {key}: HTTPS needs both files")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except OSError as error:  # an SSLError is one
        raise UserError(f"--tls-cert {cert}, --tls-key {key}: no certificate with its key, as PEM: {error}") from None
    return cert, key


@contextmanager
def listen(door: Door) -> Generator[socket.socket]:
    """A socket that listens as long as the block runs; UserError when it can not."""
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    # Named, for asyncio looks at it: without, Nagle's algorithm would keep every answer back for 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((door.host, door.port))
        except OSError as error:
            raise UserError(
                f"port {door.port} can not be used ({error.strerror}); stop what listens there, or take another port: "
                f"python -m clip_core.serve.gateway --port {door.port + 1} (0: any free one)"
            ) from None
        listener.listen()
        yield listener


def url_of(door: Door, listener: socket.socket) -> str:
    """Where this machine finds what listens there."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(door.host, door.host)
    return f"{'https' if door.tls else 'http'}://{_in_url(here)}:{listener.getsockname()[1]}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
