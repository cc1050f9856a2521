"""What every request meets before the application: whose it may be, how large and how often."""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from clip_core.serve.keys import Keys
    from clip_core.serve.metrics import Metrics

API = "/v1/"
PROBES = ("/livez", "/readyz")  # what looks after servers asks by their addresses, and has no key
MAX_BODY = 2**20  # bytes; the page's routes take none, so whoever sends more is mistaken or no friend
MAX_API_BODY = 24 * 2**20  # a picture of the size that the models take at most, in base64
MAX_BODIES = 256 * 2**20  # of all requests together
BODY_SECONDS = 30.0  # for a body to come
CLOSE = {"Connection": "close"}
INTERNAL = "an internal error; the server's log explains it"
# Every other refusal is the caller's: "input".
KINDS = {401: "key", 404: "not_found", 429: "limit", 500: "internal", 503: "overload"}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADERS = {
    # Nothing from outside: neither scripts nor fonts nor pictures; and in no other site's frame or page.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data:; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the page's address holds the query
    "X-Content-Type-Options": "nosniff",
}

log = logging.getLogger(__name__)


def guarded(app: "ASGIApp", host_names: Sequence[str], keys: "Keys | None", metrics: "Metrics") -> "ASGIApp":
    """`app` behind the checks; what fails in it is answered by 500 and explained in the log, under the answer's id."""
    bodies = Bodies()

    async def guard(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["id"] = request_id

        async def send_with_headers(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS | {"X-Request-Id": request_id})
                headers.setdefault("Cache-Control", "no-store")  # but pictures, none of the answers stays true
                if scope["app"].state.is_draining:
                    headers["Connection"] = "close"  # so that the next request goes elsewhere
            await send(message)

        try:
            if refusal := _refuse_stranger(scope, host_names) or _refuse_without_key(scope, keys):
                await refusal(scope, receive, send_with_headers)
                return
            async with bodies.of(scope, receive) as body:
                answer = body if isinstance(body, JSONResponse) else app
                await answer(scope, _again(body, receive), send_with_headers)
        except ClientDisconnect:  # in the midst of the body: nobody waits for an answer
            pass
        except Exception:  # the edge: whatever it is, the caller gets an answer and the log the reason
            log.exception("request %s failed: %s %r", request_id, scope["method"], scope["path"])
            if status:
                raise
            await problem(scope, 500, INTERNAL)(scope, receive, send_with_headers)
        finally:
            metrics.seen(scope, status, time.perf_counter() - started)

    return guard


class Bodies:
    """The requests' bodies, of which only so much is held in memory at the same time."""

    def __init__(self) -> None:
        self.num_held = 0  # bytes

    @asynccontextmanager
    async def of(self, scope: "Scope", receive: "Receive") -> AsyncGenerator[bytes | JSONResponse]:
        """The request's body, held as long as the block runs; the answer to one that is too large, or too slow."""
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                refusal = await self._read(scope, receive, chunks)
        except TimeoutError:
            refusal = problem(scope, 408, f"the body did not come within {BODY_SECONDS:.0f} s", CLOSE)
        try:
            yield refusal or b"".join(chunks)
        finally:
            self.num_held -= sum(map(len, chunks))

    async def _read(self, scope: "Scope", receive: "Receive", chunks: list[bytes]) -> JSONResponse | None:
        most = MAX_API_BODY if scope["path"].startswith(API) else MAX_BODY
        size, more = int(Headers(scope=scope).get("content-length", "0")), True
        if size <= most:
            size = 0
            while more and size <= most:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                if chunk := message.get("body", b""):
                    chunks.append(chunk)
                    size += len(chunk)
                    self.num_held += len(chunk)
                more = message.get("more_body", False)
                if self.num_held > MAX_BODIES:
                    return problem(scope, 503, "too many large bodies at the same time", CLOSE | {"Retry-After": "1"})
        # Closed, for else the rest of the body would be read from the connection, to find the next request.
        return None if size <= most else problem(scope, 413, f"the body is larger than {most} bytes", CLOSE)


def problem(scope: "Scope", status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that gets nothing else: the reason, its kind and the request's id.

    Under /v1 in the shape that clients of such interfaces know.
    """
    kind, request_id = KINDS.get(status, "input"), scope["state"]["id"]
    if scope["path"].startswith(API):
        error = {"message": message, "type": kind, "param": None, "code": None}
        return JSONResponse({"error": error, "id": request_id}, status, headers)
    return JSONResponse({"error": message, "kind": kind, "id": request_id}, status, headers)


def _again(body: bytes | JSONResponse, receive: "Receive") -> "Receive":
    """`receive` as if the body had not been read yet."""
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def receive_again() -> "Message":
        return messages.pop() if messages else await receive()

    return receive_again


def _refuse_stranger(scope: "Scope", host_names: Sequence[str]) -> JSONResponse | None:
    """The answer to a page of elsewhere that would use this server through its visitor's browser."""
    if scope["path"] in PROBES:
        return None
    headers = Headers(scope=scope)
    host = headers.get("host", "").lower()
    if re.sub(r":\d*$", "", host) not in host_names:  # a name of elsewhere that was made to lead here (DNS rebinding)
        return problem(scope, 421, f"this server answers as {', '.join(host_names)}, not as {host!r}")
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host:
        return problem(scope, 403, f"a page of {origin!r} may not use this server")
    # Not every request of a page has an Origin. "none" is a user who typed the address.
    is_asked = scope["path"].startswith(("/api/", API))
    if is_asked and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return problem(scope, 403, "a page of another site may not use this server")
    return None


def _refuse_without_key(scope: "Scope", keys: "Keys | None") -> JSONResponse | None:
    if keys is None or scope["path"] in PROBES:
        return None
    name = keys.owner(Headers(scope=scope).get("authorization", ""))
    if name is None:  # a browser asks its user for the password
        ask = {"WWW-Authenticate": 'Basic realm="the key is the password", charset="UTF-8"'}
        return problem(scope, 401, "a key is wanted: Authorization: Bearer KEY", ask)
    scope["state"]["key"] = name
    if seconds := keys.wait(name):
        often = f"the key {name!r} may be used {keys.keys[name].per_minute} times a minute"
        return problem(scope, 429, often, {"Retry-After": str(math.ceil(seconds))})
    return None
