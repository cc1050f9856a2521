"""The gateway's web application: the page, /v1, and what those who look after it ask."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from clip_core.serve.api import api_of
from clip_core.serve.edge import guarded, problem
from clip_core.serve.keys import Keys
from clip_core.serve.metrics import Metrics
from clip_core.serve.page import add_page
from clip_core.serve.pictures import Galleries
from clip_core.serve.samples import Sampler
from clip_core.serve.traces import traced
from clip_core.serve.upstream import Upstream

NAMED = 5  # of what is wrong with a request
HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")


def make_app(
    upstream: Upstream,
    releases: Path,
    host_names: Sequence[str] = HOST_NAMES,
    keys: Keys | None = None,
    sampler: Sampler | None = None,
) -> FastAPI:
    """The web application before a Triton, with the pictures of all releases in the folder.

    It answers as `host_names` alone, and with `keys` only who has one. What is asked is shown to the sampler.
    """
    galleries, metrics = Galleries(releases), Metrics(upstream)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        yield
        await upstream.close()
        if sampler:
            sampler.close()

    # FastAPI's own pages load scripts from a CDN.
    app = FastAPI(title="Chinese CLIP", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.is_draining = False
    app.add_middleware(guarded, host_names=host_names, keys=keys, metrics=metrics)
    if upstream.tracer:
        app.add_middleware(traced, tracer=upstream.tracer)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return problem(request.scope, error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(request: Request, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()[:NAMED]]
        return problem(request.scope, 400, "; ".join(wrong))

    add_page(app, upstream, galleries, sampler)
    app.include_router(api_of(upstream, galleries, keys is not None, sampler))

    @app.get("/livez")
    async def live() -> dict:
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "Not every model answers, or the server is about to end"}})
    async def ready() -> JSONResponse:
        states = dict(upstream.backend.states)
        are_ok = bool(upstream.backend.address and states) and set(states.values()) == {"ok"}
        is_ready = are_ok and not app.state.is_draining
        return JSONResponse({"models": states, "release": upstream.release}, 200 if is_ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app
