"""The page where one types Chinese: a web application that asks Triton and shows the gallery's pictures."""

import io
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}


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
        data, kind = for_browsers(pictures.store.image_bytes(pictures.places[image_id]))
        return Response(data, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

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


def _open_pictures(store: "Store") -> Pictures:
    for first in store.first_of_shard:
        store.image_bytes(first)  # opens the shard, which then stays what it is
    return Pictures(store, {image_id: place for place, image_id in enumerate(store.image_ids)}, _names(store))


def _names(store: "Store") -> dict[str, str]:
    """The first Chinese name (or caption) of every picture."""
    rows = store.pairs.query("language == 'zh' and caption_kind != 'keyword'").drop_duplicates("image_id")
    return dict(zip(rows.image_id, rows.caption, strict=True))
