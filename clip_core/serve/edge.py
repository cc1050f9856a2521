"""What every request meets before the page's application: whose it may be, how large, and what all answers carry."""

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 2**20  # bytes; no route takes a body, so whoever sends more is mistaken or no friend
INTERNAL = "an internal error; the server's log explains it"
KINDS = {404: "not_found", 500: "internal", 503: "overload"}  # every other refusal is the caller's: "input"
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


def guarded(app: "ASGIApp", host_names: Sequence[str]) -> "ASGIApp":
    """`app` behind the checks; what fails in it is answered by 500 and explained in the log, under the answer's id."""

    async def guard(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["id"] = request_id
        has_begun = False

        async def send_with_headers(message: "Message") -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS | {"X-Request-Id": request_id})
                headers.setdefault("Cache-Control", "no-store")  # but pictures, none of the answers stays true
            await send(message)

        try:
            refusal = _refuse_stranger(scope, host_names) or await _refuse_large(scope, receive)
            await (refusal or app)(scope, receive, send_with_headers)
        except Exception:  # the edge: whatever it is, the caller gets an answer and the log the reason
            log.exception("request %s failed: %s %r", request_id, scope["method"], scope["path"])
            if has_begun:
                raise
            await problem(scope, 500, INTERNAL)(scope, receive, send_with_headers)

    return guard


def problem(scope: "Scope", status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that gets nothing else: the reason, its kind and the request's id."""
    kind = KINDS.get(status, "input")
    return JSONResponse({"error": message, "kind": kind, "id": scope["state"]["id"]}, status, headers)


def _refuse_stranger(scope: "Scope", host_names: Sequence[str]) -> JSONResponse | None:
    """The answer to a page of elsewhere that would use this server through its visitor's browser."""
    headers = Headers(scope=scope)
    host = headers.get("host", "").lower()
    if re.sub(r":\d*$", "", host) not in host_names:  # a name of elsewhere that was made to lead here (DNS rebinding)
        return problem(scope, 421, f"this server answers as {', '.join(host_names)}, not as {host!r}")
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host:
        return problem(scope, 403, f"a page of {origin!r} may not use this server")
    # Not every request of a page has an Origin. "none" is a user who typed the address.
    if scope["path"].startswith("/api/") and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return problem(scope, 403, "a page of another site may not use this server")
    return None


async def _refuse_large(scope: "Scope", receive: "Receive") -> JSONResponse | None:
    """Reads the body as far as it may go; the answer to one that goes further."""
    size, more = int(Headers(scope=scope).get("content-length", "0")), True
    if size <= MAX_BODY:
        size = 0
        while more and size <= MAX_BODY:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
    if size <= MAX_BODY:
        return None
    # Else the rest of the body would be read from the connection, to find the next request.
    return problem(scope, 413, f"the body is larger than {MAX_BODY} bytes", {"Connection": "close"})
