"""The page where one types Chinese: a web application that asks Triton and shows the galleries' pictures."""

import asyncio
import io
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import quote

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

from clip_core.data.store import open_store
from clip_core.errors import UserError
from clip_core.inference.calibration import Calibration, read_calibration
from clip_core.serve.edge import INTERNAL, guarded, problem
from clip_core.serve.queries import Found, find
from clip_core.serve.release import GALLERY_NAME, RELEASE_ID

if TYPE_CHECKING:
    from clip_core.data.store import Store

PAGE = Path(__file__).with_name("page.html")
HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")
MAX_TOP = 100  # the largest index.top_k of params.yaml; a release gives its own top_k at most
MAX_TEXT_BYTES = 16 * 2**10  # as in triton_models.py, which Triton alone can import
AT_ONCE = 64  # searches: as many as the models take in one batch; more would only wait behind it
DEADLINE = 10.0  # seconds for a search; nobody looks at a page for longer
AGAIN = {"Retry-After": "1"}  # second
# While Triton starts, stops, loads a model or has too long a queue; the searches of a moment later may do well.
NOT_READY = {f"StatusCode.{name}" for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "NOT_FOUND", "CANCELLED")}
CHANNEL = [
    ("grpc.max_reconnect_backoff_ms", 1000),  # else Triton may be back for two minutes before it is asked again
    ("grpc.enable_http_proxy", 0),  # it is near, whatever proxy is set
]
ANY_TEXT = "一只猫"
MAX_OPEN = 8  # galleries: those of the release that serves, of the one before and of the next
FOREVER = "private, max-age=31536000, immutable"  # what lies in a release never changes
MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}

log = logging.getLogger(__name__)


class Backend(Protocol):
    """What serves the models, as its supervisor sees it at this moment."""

    @property
    def address(self) -> str:
        """host:port of Triton's gRPC, another one after Triton was started again; "" while there is none."""

    @property
    def states(self) -> dict[str, str]:
        """Public model -> "ok", or what is wrong with it."""


class Pictures(NamedTuple):
    store: "Store"
    places: dict[str, int]  # of the picture's id
    names: dict[str, str]
    calibration: Calibration | None


class Galleries:
    """The galleries of the releases in a folder; the last used of them stay open."""

    def __init__(self, releases: Path) -> None:
        self.releases = releases
        self.open: dict[Path, asyncio.Task[Pictures]] = {}  # the last used one is the last

    async def names(self, release: str) -> list[str]:
        """The release's galleries, sorted."""
        folder = self.releases / release / "galleries"
        found = await asyncio.to_thread(lambda: sorted(entry.name for entry in folder.iterdir()))
        return [name for name in found if GALLERY_NAME.fullmatch(name)]

    async def pictures(self, release: str, gallery: str) -> Pictures:
        """Those of the gallery; 404 when there is none, or no more."""
        folder = self.releases / release / "galleries" / gallery
        if not (RELEASE_ID.fullmatch(release) and GALLERY_NAME.fullmatch(gallery) and folder.is_dir()):
            raise HTTPException(404, f"no release {release!r} with a gallery {gallery!r} here")
        task = self.open.pop(folder, None)
        if task is None or (task.done() and task.exception()):
            self._close_all_but(MAX_OPEN - 1)
            task = asyncio.create_task(asyncio.to_thread(_open_pictures, folder))
        self.open[folder] = task
        return await asyncio.shield(task)  # others wait for it, too

    def _close_all_but(self, num_kept: int) -> None:
        """Who reads a picture still has its store, which closes with its last user."""
        there = [folder for folder in self.open if folder.is_dir()]
        self.open = {folder: self.open[folder] for folder in there[-num_kept:]}


class Searches:
    """Questions to the Triton of the moment; `release` is the one that answered last."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.num_running = 0
        self.release: str | None = None
        self.address, self.client = "", None
        self.closing: set[asyncio.Task] = set()

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """The block is one of the few that run at the same time, until its deadline; 503 when it can not be."""
        if self.num_running == AT_ONCE:
            raise HTTPException(503, f"{AT_ONCE} searches are running, and no more may at the same time", AGAIN)
        self.num_running += 1
        try:
            async with asyncio.timeout(DEADLINE):
                yield
        except TimeoutError:
            raise HTTPException(503, f"no answer within {DEADLINE:.0f} s", AGAIN) from None
        finally:
            self.num_running -= 1

    async def ask(self, text: str, gallery: str | None, request_id: str) -> Found:
        """What Triton finds, with finite scores; 400 with its reason when it is the caller's mistake."""
        try:
            found = await find(self._client(), text, gallery)
        except UserError as error:
            raise HTTPException(400, str(error)) from None
        except InferenceServerException as error:
            if error.status() not in NOT_READY:  # Triton's log says more, a traceback of ours would not
                log.error("request %s failed: %s", request_id, error)
                raise HTTPException(500, INTERNAL) from None
            raise HTTPException(503, "Triton is not ready", AGAIN) from None
        if not np.isfinite(found.scores).all():
            raise ValueError(f"release {found.release} finds pictures with the scores {found.scores}")
        self.release = found.release
        return found

    async def close(self) -> None:
        """Ends the connection."""
        if self.client is not None:
            await self.client.close()

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


def make_app(backend: Backend, releases: Path, host_names: Sequence[str] = HOST_NAMES) -> FastAPI:
    """The web application: the page, the search behind it and the pictures of all releases in the folder."""
    searches, galleries = Searches(backend), Galleries(releases)
    html = PAGE.read_text(encoding="utf-8")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        yield
        await searches.close()

    # FastAPI's own pages load scripts from a CDN.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(guarded, host_names=host_names)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return problem(request.scope, error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(request: Request, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return problem(request.scope, 400, "; ".join(wrong))

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(html)

    @app.get("/api/search")
    async def search(
        request: Request,
        text: str,
        top: int = Query(10, ge=1, le=MAX_TOP),
        gallery: str | None = Query(None, pattern=f"^{GALLERY_NAME.pattern}$"),
    ) -> dict:
        started = time.perf_counter()
        if (size := len(text.encode())) > MAX_TEXT_BYTES:
            raise HTTPException(400, f"the text has {size} bytes; {MAX_TEXT_BYTES} are allowed")
        async with searches.turn():
            found = await searches.ask(text, gallery, request.state.id)
            gallery = gallery or (await galleries.names(found.release))[0]
            pictures = await galleries.pictures(found.release, gallery)
        hits = [
            {
                "image_id": image_id,
                "score": round(float(score), 4),
                "probability": probability,
                "name": pictures.names.get(image_id, ""),
                "image": f"/images/{found.release}/{gallery}/{quote(image_id, safe='')}",
            }
            for image_id, score, probability in zip(
                found.ids, found.scores, _probabilities(pictures, found.scores), strict=True
            )
        ]
        milliseconds = round(1000 * (time.perf_counter() - started), 1)
        answer = {"text": text, "release": found.release, "gallery": gallery, "milliseconds": milliseconds}
        return answer | {"hits": hits[:top]}

    @app.get("/api/galleries")
    async def offer(request: Request) -> dict:
        async with searches.turn():
            release = (await searches.ask(ANY_TEXT, None, request.state.id)).release
            return {"release": release, "galleries": await galleries.names(release)}

    @app.get("/images/{release}/{gallery}/{image_id:path}")
    async def image(request: Request, release: str, gallery: str, image_id: str) -> Response:
        pictures = await galleries.pictures(release, gallery)
        if image_id not in pictures.places:
            raise HTTPException(404, f"no picture {image_id!r} in the gallery")
        etag = f'"{release}"'  # with the address it says which picture it is
        headers = {"Cache-Control": FOREVER, "ETag": etag}
        held = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if held & {etag, "*"}:
            return Response(status_code=304, headers=headers)
        data, kind = await asyncio.to_thread(_read_picture, pictures, image_id)
        return Response(data, media_type=kind, headers=headers)

    @app.get("/livez")
    async def live() -> dict:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        states = dict(backend.states)
        is_ready = bool(backend.address and states) and set(states.values()) == {"ok"}
        return JSONResponse({"models": states, "release": searches.release}, 200 if is_ready else 503)

    return app


def for_browsers(data: bytes) -> tuple[bytes, str]:
    """The encoded picture with its media type; as PNG where few browsers show it, as TIFF."""
    for start, kind in MEDIA_TYPES.items():
        if data.startswith(start):
            return data, kind
    from clip_core.image import read_image

    png = io.BytesIO()
    read_image(data).save(png, "PNG")
    return png.getvalue(), "image/png"


def _read_picture(pictures: Pictures, image_id: str) -> tuple[bytes, str]:
    return for_browsers(pictures.store.image_bytes(pictures.places[image_id]))


def _open_pictures(folder: Path) -> Pictures:
    store = open_store(folder)
    for file in store.files:
        store.image_bytes(file["first"])  # opens it, so that it can be read also when the folder is removed
    places = {image_id: place for place, image_id in enumerate(store.image_ids)}
    return Pictures(store, places, _names(store), read_calibration(folder.parents[1], None))


def _probabilities(pictures: Pictures, scores: np.ndarray) -> list[float | None]:
    """That each of the pictures found matches the text; None where the release has no calibration."""
    if pictures.calibration is None:
        return [None] * len(scores)
    probabilities = pictures.calibration.probability(scores, len(pictures.places))
    return [round(float(value), 4) for value in probabilities]


def _names(store: "Store") -> dict[str, str]:
    """The first Chinese name (or caption) of every picture."""
    rows = store.pairs.query("language == 'zh' and caption_kind != 'keyword' and image_id.notna()")
    rows = rows.drop_duplicates("image_id")
    return dict(zip(rows.image_id, rows.caption, strict=True))


async def _close_late(client: aio.InferenceServerClient) -> None:
    await asyncio.sleep(DEADLINE)  # its last question is answered by then, or late
    await client.close()
