"""OpenTelemetry: a span for each request to the gateway, and below it one for each question to Triton.

Its SDK is not imported unless the environment says where spans go (ENDPOINTS). OpenTelemetry's other variables say as
whose (OTEL_SERVICE_NAME) and how many (OTEL_TRACES_SAMPLER). What was asked stands in no span.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from clip_core.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE = "clip-gateway"


def tracer_of_environment() -> "Tracer | None":
    """Its spans are sent by a thread of their own; None where nobody wants any, UserError where packages lack."""
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if named is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise UserError(f"{named} is set, but {error}; install clip-core[otel], or unset it") from None
    ours = Resource.create({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=ours)  # it sends what is left when this process ends
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("clip_core")


def traced(app: "ASGIApp", tracer: "Tracer") -> "ASGIApp":
    """`app` with a span for each request, below the span of whoever asks (W3C's traceparent)."""
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    async def trace(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        facts: dict[str, Any] = {"http.request.method": scope["method"], "url.path": scope["path"]}

        async def send_and_note(message: "Message") -> None:
            if message["type"] == "http.response.start":
                facts["http.response.status_code"] = message["status"]
            await send(message)

        above = TraceContextTextMapPropagator().extract(Headers(scope=scope))
        with tracer.start_as_current_span(
            scope["method"], above, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                await app(scope, receive, send_and_note)
            finally:
                if route := getattr(scope.get("route"), "path", None):
                    facts["http.route"] = route
                    span.update_name(f"{scope['method']} {route}")
                span.set_attributes(facts | {"clip.request_id": scope["state"]["id"]})
                if facts.get("http.response.status_code", 0) >= 500:
                    span.set_status(StatusCode.ERROR)

    return trace


def note_release(tracer: "Tracer | None", release: str) -> None:
    """Writes on the request's span which release has answered it."""
    if tracer:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("clip.release", release)


@contextmanager
def question(tracer: "Tracer | None", model: str) -> Generator[dict[str, str]]:
    """A span for what the block asks Triton; gives the headers by which Triton's own spans come below it."""
    headers: dict[str, str] = {}
    if tracer is None:
        yield headers
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # Not the exception itself: its message may hold what was asked.
    with tracer.start_as_current_span(
        model, kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
    ) as span:
        TraceContextTextMapPropagator().inject(headers)
        try:
            yield headers
        except BaseException as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise
