"""API keys: who may ask the gateway, and how often. `python -m clip_core.serve.keys FILE NAME` makes one.

The file holds no key, only the SHA-256 of each. Nothing slower is needed: a key is 256 random bits.
"""

import argparse
import base64
import binascii
import hashlib
import hmac
import logging
import re
import secrets
import time
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from clip_core.config.section import Count, Section
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
BURST_SECONDS = 10  # of its requests that a key may send all at once

log = logging.getLogger(__name__)


class Key(Section):
    """What the file says of one key."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    per_minute: Count  # requests


FILE = TypeAdapter(dict[Annotated[str, Field(pattern=f"^{NAME.pattern}$")], Key])


class Keys:
    """The keys of a file, which may change while they are in use."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys, self.seen = read_keys(file), self._stamp()
        self.left: dict[str, tuple[float, float]] = {}  # name -> requests that it may send at once, as of when

    def owner(self, authorization: str) -> str | None:
        """The name of the key in the header `Authorization` (Bearer, or Basic's password); None when there is none."""
        self._read_again()
        digest = hashlib.sha256(_key_in(authorization)).hexdigest()
        found = None
        for name, key in self.keys.items():  # all of them: the time it takes says nothing
            if hmac.compare_digest(digest, key.sha256):
                found = name
        return found

    def wait(self, name: str) -> float:
        """Seconds until the key may be used again; 0: now, and this is counted."""
        per_second, now = self.keys[name].per_minute / 60, time.monotonic()
        most = max(1.0, BURST_SECONDS * per_second)
        left, then = self.left.get(name, (most, now))
        left = min(most, left + (now - then) * per_second)
        is_allowed = left >= 1
        self.left[name] = left - is_allowed, now
        return 0.0 if is_allowed else (1 - left) / per_second

    def _read_again(self) -> None:
        if (stamp := self._stamp()) == self.seen:
            return
        self.seen = stamp
        try:
            self.keys = read_keys(self.file)
        except UserError as error:  # who writes it by hand may be in the midst of it
            log.error("the keys stay what they were: %s", error)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = self.file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino


def read_keys(file: Path) -> dict[str, Key]:
    """Name -> key; UserError when the file is not one of keys."""
    remedy = f"`python -m clip_core.serve.keys {file} NAME` makes a key"
    try:
        return FILE.validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: can not be read ({error.strerror}); {remedy}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in error.errors())
        raise UserError(f"{file}: not a file of keys: {wrong}; {remedy}") from None


def add_key(file: Path, name: str, per_minute: int) -> str:
    """A new key, which takes the place of the one that had its name."""
    if not NAME.fullmatch(name) or per_minute < 1:
        raise UserError(f"{name!r}, {per_minute} per minute: small letters, digits, - and _ are wanted, and at least 1")
    keys = read_keys(file) if file.exists() else {}
    key = f"clip-{secrets.token_urlsafe(32)}"
    keys[name] = Key(sha256=hashlib.sha256(key.encode()).hexdigest(), per_minute=per_minute)
    atomic_write(file, FILE.dump_json(keys, indent=1) + b"\n")
    return key


def _key_in(authorization: str) -> bytes:
    kind, _, value = authorization.partition(" ")
    if kind.lower() != "basic":
        return value.strip().encode()
    try:
        return base64.b64decode(value).partition(b":")[2]
    except binascii.Error:
        return b""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.serve.keys", description="makes an API key and writes its hash down"
    )
    parser.add_argument("file", type=Path, help="of the keys, for the gateway's --keys")
    parser.add_argument("name", help="whose key it is")
    parser.add_argument("--per-minute", type=int, default=600, help="requests (default 600)")
    parser.add_argument("--replace", action="store_true", help="the key that it had is then valid no more")
    arguments = parser.parse_args()
    file, name = arguments.file, arguments.name
    with told_to_the_user(OSError):
        if file.exists() and not arguments.replace and (known := read_keys(file).get(name)):
            often = f"for {known.per_minute} requests a minute"
            raise UserError(f"{file}: {name} has a key, {often}; with --replace that ends, and a new one is made")
        print(add_key(file, name, arguments.per_minute))


if __name__ == "__main__":
    main()
