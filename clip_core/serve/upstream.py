"""The gateway's questions to the Triton of the moment, awaited; what goes wrong there becomes an answer over HTTP."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

from clip_core.errors import UserError
from clip_core.serve.answers import Answers
from clip_core.serve.canary import Canary, Fault, Seen
from clip_core.serve.edge import INTERNAL
from clip_core.serve.queries import SHARES, Found, ask_async, in_requests
from clip_core.serve.traces import note_release, question

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

AT_ONCE = 64  # questions: as many as the models take in one batch; more would only wait behind it
DEADLINE = 10.0  # seconds for a search; nobody looks at a page for longer
PATIENCE = 60.0  # seconds for a request that may hold many texts and pictures
AGAIN = {"Retry-After": "1"}  # second
# While Triton starts, stops, loads a model or has too long a queue; the questions of a moment later may do well.
NOT_READY = {f"StatusCode.{name}" for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "NOT_FOUND", "CANCELLED")}
CHANNEL = [
    ("grpc.max_reconnect_backoff_ms", 1000),  # else Triton may be back for two minutes before it is asked again
    ("grpc.enable_http_proxy", 0),  # it is near, whatever proxy is set
]
TOWERS = {str: ("clip_text", "TEXT", "text_features"), bytes: ("clip_image", "IMAGE", "image_features")}
ROUNDS = 3  # in which texts and pictures may be encoded by different releases: a rollout lies between two of them

log = logging.getLogger(__name__)


class Backend(Protocol):
    """What serves the models, as its supervisor sees it at this moment."""

    @property
    def address(self) -> str:
        """host:port of Triton's gRPC, another one after Triton was started again; "" while there is none."""

    @property
    def release(self) -> str | None:
        """The one that is public; in the midst of a rollout the models may be those of the next one already."""

    @property
    def states(self) -> dict[str, str]:
        """Public model -> "ok", or what is wrong with it."""


class Caller(NamedTuple):
    """Who asks."""

    request_id: str
    name: str  # of the key; where there are none, the address

    @classmethod
    def of(cls, request: Request) -> "Caller":
        address = request.client.host if request.client else "gone"  # who hung up at once has none any more
        return cls(request.state.id, getattr(request.state, "key", address))


class Upstream:
    """Questions to Triton, but for those whose answers are known; `release` is the public one that answered last."""

    def __init__(self, backend: Backend, answers: Answers, canary: Canary, tracer: "Tracer | None" = None) -> None:
        self.backend, self.answers, self.canary, self.tracer = backend, answers, canary, tracer
        self.num_running = 0
        self.release: str | None = None
        self.address, self.client = "", None
        self.closing: set[asyncio.Task] = set()

    @asynccontextmanager
    async def turn(self, seconds: float) -> AsyncGenerator[None]:
        """The block is one of the few that run at the same time, for so long at most; 503 when it can not be."""
        if self.num_running == AT_ONCE:
            raise HTTPException(503, f"{AT_ONCE} searches are running, and no more may at the same time", AGAIN)
        self.num_running += 1
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise HTTPException(503, f"no answer within {seconds:.0f} s", AGAIN) from None
        finally:
            self.num_running -= 1

    async def find(self, text: str, gallery: str | None, caller: Caller) -> Found:
        """What `clip_search` finds, with finite scores; 400 with its reason when it is the caller's mistake."""
        tensors = {"TEXT": [text.encode()]} | ({} if gallery is None else {"GALLERY": [gallery.encode()]})
        canary, asked = self.canary.release_for(caller.name), [one for (one,) in tensors.values()]
        known = canary or self.backend.release
        if known and (found := self.answers.get(known, "clip_search", *asked)):
            note_release(self.tracer, known)
            return found
        try:
            (ids,), (scores,), ((release,),) = await self._ask(
                "clip_search", canary, tensors, ["ids", "scores", "release"], caller.request_id
            )
        except UserError as error:
            raise HTTPException(400, str(error)) from None
        found = Found([image_id.decode() for image_id in ids], scores, release.decode())
        note_release(self.tracer, found.release)
        if not canary:
            self.release = found.release
        if not np.isfinite(scores).all():
            raise ValueError(f"release {found.release} finds pictures with the scores {scores}")
        if known and ids.size and found.release == known:
            self.answers.keep(found, known, "clip_search", *asked)
        return found

    async def encode(self, items: Mapping[str, str | bytes], caller: Caller) -> tuple[np.ndarray, str]:
        """The features (n, embed_dim) of texts and encoded pictures, by name, and the one release that made them all.

        400 with the name of the item that is refused.
        """
        canary = self.canary.release_for(caller.name)
        for known in (canary or self.backend.release, *[None] * (ROUNDS - 1)):  # in a rollout it may be the other's
            rows, releases = await self._encode(items, caller.request_id, canary, known)
            if len(releases) == 1:
                (release,) = releases
                note_release(self.tracer, release)
                if not canary:
                    self.release = release
                return np.stack([rows[name] for name in items]), release
        raise HTTPException(503, "a rollout is under way", AGAIN)

    async def close(self) -> None:
        """Ends the connection."""
        if self.client is not None:
            await self.client.close()

    async def _encode(
        self, items: Mapping[str, str | bytes], request_id: str, canary: str | None, known: str | None
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Their features and the releases that made them; what `known` is known to answer is not asked."""
        rows, releases = {}, set()
        for kind, (model, tensor, output) in TOWERS.items():
            given = {name: _as_bytes(name, item) for name, item in items.items() if isinstance(item, kind)}
            keeps = known if kind is str else None
            if keeps:
                found = {name: self.answers.get(keeps, model, item) for name, item in given.items()}
                rows |= (found := {name: row for name, row in found.items() if row is not None})
                releases |= {keeps} if found else set()
                given = {name: item for name, item in given.items() if name not in found}
            names, encoded = list(given), list(given.values())
            if tensor == "IMAGE" and encoded:  # it looks into the pictures
                parts = await asyncio.to_thread(in_requests, encoded, SHARES[tensor])
            else:
                parts = in_requests(encoded, SHARES[tensor])
            for some in parts:
                asked, names = names[: len(some)], names[len(some) :]
                try:
                    features, made_by = await self._ask(model, canary, {tensor: some}, [output, "release"], request_id)
                except UserError as error:
                    raise HTTPException(400, _by_name(str(error), asked)) from None
                if not np.isfinite(features).all():  # onnxruntime's own backend does not check
                    raise ValueError(f"{model} answers request {request_id} with features that are not finite")
                rows |= dict(zip(asked, features, strict=True))
                made = {release.decode() for release in made_by.ravel()}
                releases |= made
                if keeps and made == {keeps}:
                    for item, row in zip(some, features, strict=True):
                        self.answers.keep(row.copy(), keeps, model, item)  # a view would hold the whole batch
        return rows, releases

    async def _ask(
        self, model: str, canary: str | None, tensors: dict[str, list[bytes]], outputs: list[str], request_id: str
    ) -> list[np.ndarray]:
        """The outputs of the public model, or of the canary's; UserError when it refuses its inputs."""
        columns = {name: np.array(items, dtype=object).reshape(-1, 1) for name, items in tensors.items()}
        asked = f"{model}_{canary}" if canary else model
        started, fault = time.perf_counter(), "errors"  # whatever ends it, also that it takes too long
        try:
            with question(self.tracer, asked) as headers:
                arrays = await ask_async(self._client(), asked, columns, outputs, request_id, headers)
            fault = _fault_of(arrays)
            return arrays
        except UserError:
            fault = None
            raise
        except InferenceServerException as error:
            if error.status() not in NOT_READY:  # Triton's log says more, a traceback of ours would not
                log.error("request %s failed: %s", request_id, error)
                raise HTTPException(500, INTERNAL) from None
            raise HTTPException(503, "Triton is not ready", AGAIN) from None
        finally:
            self.canary.saw(model, canary, Seen(time.perf_counter() - started, fault))

    def _client(self) -> aio.InferenceServerClient:
        address = self.backend.address
        if not address:
            raise HTTPException(503, "Triton is not running; it is about to be started", AGAIN)
        if self.client is None or address != self.address:
            if self.client is not None:
                closing = asyncio.create_task(_close_late(self.client))
                self.closing.add(closing)  # asyncio itself would forget it
                closing.add_done_callback(self.closing.discard)
            self.address, self.client = address, aio.InferenceServerClient(address, channel_args=CHANNEL)
        return self.client


def _fault_of(arrays: Sequence[np.ndarray | None]) -> Fault | None:
    """What is wrong with a model's outputs."""
    for array in arrays:
        if array is None or not array.size:
            return "empty"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return "errors"
    return None


def _as_bytes(name: str, item: str | bytes) -> bytes:
    try:
        return item if isinstance(item, bytes) else item.encode()
    except UnicodeEncodeError:  # a surrogate without its other half, which JSON can spell
        raise HTTPException(400, f"{name}: the text is not valid Unicode") from None


def _by_name(message: str, names: Sequence[str]) -> str:
    """What a model says of the item of a request that it refuses, with the item's name in place of its number."""
    item = re.match(r"item (\d+): ", message)
    return message if item is None else f"{names[int(item[1])]}: {message[item.end() :]}"


async def _close_late(client: aio.InferenceServerClient) -> None:
    await asyncio.sleep(PATIENCE)  # its last question is answered by then, or late
    await client.close()
