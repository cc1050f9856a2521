"""One try at one URL: http and https alone, each hop's address checked, no more bytes and no longer than allowed."""

import asyncio
import socket

import httpx

from clip_core.config.sources import Fetch
from clip_core.data.sources.fetch_address import NotAllowed, addresses_of

MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
TRANSIENT = (408, 425, 429)  # and 500 and above
HEADERS = {
    "User-Agent": "clip-core",
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Failure(Exception):
    """Why the URL gave no picture."""

    def __init__(self, reason: str, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.is_transient = reason, is_transient


def open_transport(settings: Fetch) -> httpx.AsyncHTTPTransport:
    """Connections without proxies (they would connect for us, unchecked), cookies and reuse.

    Reuse would hand one host's connection to another host at the same address.
    """
    limits = httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=0)
    return httpx.AsyncHTTPTransport(trust_env=False, limits=limits)


async def get(transport: httpx.AsyncHTTPTransport, url: str, settings: Fetch, attempt: int) -> bytes:
    """The bytes at the URL; raises Failure."""
    try:
        async with asyncio.timeout(settings.timeout_seconds):  # of all: a server may answer byte by byte
            return await _get(transport, url, settings, attempt)
    except (TimeoutError, httpx.TimeoutException):
        raise Failure("url_timeout", is_transient=True) from None
    except httpx.ConnectError:
        raise Failure("url_no_connection", is_transient=True) from None
    except httpx.TransportError:
        raise Failure("url_connection_lost", is_transient=True) from None
    except (httpx.InvalidURL, UnicodeError):  # also of a name that is none, as with a label of 64 letters
        raise Failure("url_invalid") from None
    except NotAllowed:
        raise Failure("url_private_address") from None
    except socket.gaierror as error:
        raise Failure("url_no_such_host", is_transient=error.errno == socket.EAI_AGAIN) from None


async def _get(transport: httpx.AsyncHTTPTransport, url: str, settings: Fetch, attempt: int) -> bytes:
    target = httpx.URL(url)
    for _ in range(MOST_REDIRECTS + 1):
        response = await transport.handle_async_request(await _request(target, settings, attempt))
        try:
            if response.status_code not in REDIRECTS or "location" not in response.headers:
                return await _body(response, settings.max_bytes)
            target = target.join(response.headers["location"])
        finally:
            await response.aclose()
    raise Failure("url_redirected_too_often")


async def _request(target: httpx.URL, settings: Fetch, attempt: int) -> httpx.Request:
    """The request to an address of the host, not to its name, which a second look-up could lead elsewhere."""
    if target.scheme not in ("http", "https"):
        raise Failure("url_scheme")
    if not target.host:
        raise Failure("url_invalid")
    port = target.port or {"http": 80, "https": 443}[target.scheme]
    addresses = await addresses_of(target.raw_host.decode("ascii"), port, settings.allow_private)
    return httpx.Request(
        "GET",
        target.copy_with(host=addresses[attempt % len(addresses)], userinfo=b""),
        headers={"Host": target.netloc.decode("ascii"), **HEADERS},
        extensions={
            "timeout": httpx.Timeout(settings.timeout_seconds).as_dict(),
            "sni_hostname": target.raw_host.decode("ascii"),  # what the certificate must be of
        },
    )


async def _body(response: httpx.Response, max_bytes: int) -> bytes:
    if response.status_code != 200:
        raise Failure(f"url_{response.status_code}", response.status_code >= 500 or response.status_code in TRANSIENT)
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Failure("url_encoded")  # not asked for, and a small answer can be large when decoded
    if int(response.headers.get("content-length", "0")) > max_bytes:
        raise Failure("url_too_large")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise Failure("url_too_large")
    if not body:
        raise Failure("url_empty")
    return bytes(body)
