"""The page where one types Chinese and sees pictures: itself, the search behind it, the pictures of all releases."""

import asyncio
import time
from pathlib import Path

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from clip_core.serve.pictures import Galleries
from clip_core.serve.release import GALLERY_NAME
from clip_core.serve.samples import Sampler
from clip_core.serve.upstream import DEADLINE, Caller, Upstream

PAGE = Path(__file__).with_name("page.html")
MAX_TOP = 100  # the largest index.top_k of params.yaml; a release gives its own top_k at most
MAX_TEXT_BYTES = 16 * 2**10  # as in triton_models.py, which Triton alone can import
ANY_TEXT = "一只猫"
FOREVER = "private, max-age=31536000, immutable"  # what lies in a release never changes


def add_page(app: FastAPI, upstream: Upstream, galleries: Galleries, sampler: Sampler | None) -> None:
    """Adds the page's routes, which no other program should rely on; for those there is /v1."""
    html = PAGE.read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html)

    @app.get("/api/search", include_in_schema=False)
    async def search(
        request: Request,
        text: str,
        top: int = Query(10, ge=1, le=MAX_TOP),
        gallery: str | None = Query(None, pattern=f"^{GALLERY_NAME.pattern}$"),
    ) -> dict:
        started = time.perf_counter()
        if (size := len(text.encode())) > MAX_TEXT_BYTES:
            raise HTTPException(400, f"the text has {size} bytes; {MAX_TEXT_BYTES} are allowed")
        async with upstream.turn(DEADLINE):
            found = await upstream.find(text, gallery, Caller.of(request))
            gallery = await galleries.first_unless(gallery, found.release)
            pictures = await galleries.pictures(found.release, gallery)
        if sampler:
            sampler.saw(text, found.release, found.scores, None)
        hits = pictures.hits(found.ids, found.scores, among=len(pictures.places))
        milliseconds = round(1000 * (time.perf_counter() - started), 1)
        answer = {"text": text, "release": found.release, "gallery": gallery, "milliseconds": milliseconds}
        return answer | {"hits": hits[:top]}

    @app.get("/api/galleries", include_in_schema=False)
    async def offer(request: Request) -> dict:
        async with upstream.turn(DEADLINE):
            release = (await upstream.find(ANY_TEXT, None, Caller.of(request))).release
            return {"release": release, "galleries": await galleries.names(release)}

    @app.get("/images/{release}/{gallery}/{image_id:path}", include_in_schema=False)
    async def image(request: Request, release: str, gallery: str, image_id: str) -> Response:
        pictures = await galleries.pictures(release, gallery)
        if image_id not in pictures.places:
            raise HTTPException(404, f"no picture {image_id!r} in the gallery")
        etag = f'"{release}"'  # with the address it says which picture it is
        headers = {"Cache-Control": FOREVER, "ETag": etag}
        held = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if held & {etag, "*"}:
            return Response(status_code=304, headers=headers)
        data, kind = await asyncio.to_thread(pictures.read, image_id)
        return Response(data, media_type=kind, headers=headers)
