"""Traces by OpenTelemetry, as a collector on loopback gets them; without its variable there is nothing of them."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from clip_core.errors import UserError
from clip_core.guard import free_port
from clip_core.serve.traces import ENDPOINTS, tracer_of_environment
from tests.conftest import ENVIRONMENT, ROOT
from tests.page_server import FOUND, StandIn, Supervised, page_of, standing_in
from tests.tiny_release import Release

if TYPE_CHECKING:
    from clip_core.serve.triton import Server

TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{ABOVE}-01", "X-Request-Id": "of-the-test"}
OLD = "0123456789abcdef"
Spans = Callable[[int], list[Span]]


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> Generator[list[bytes]]:
    """What a collector is sent that the environment names."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        send_to(server.server_port, monkeypatch)
        yield received
        server.shutdown()
        thread.join()


def send_to(port: int, patch: pytest.MonkeyPatch) -> None:
    patch.setenv(ENDPOINTS[0], f"http://127.0.0.1:{port}")
    patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds
    patch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def spans(bodies: list[bytes]) -> Spans:
    """Waits for so many spans, and gives them as they began."""

    def received(num: int) -> list[Span]:
        deadline = time.monotonic() + 20
        while True:
            sent = map(ExportTraceServiceRequest.FromString, list(bodies))
            parts = [part for one in sent for part in one.resource_spans]
            assert {facts(part.resource)["service.name"] for part in parts} <= {"clip-gateway"}
            found = [span for part in parts for scope in part.scope_spans for span in scope.spans]
            if len(found) >= num:
                return sorted(found, key=lambda span: span.start_time_unix_nano)
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    return received


def facts(one: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in one.attributes}


@pytest.fixture
def triton_says() -> StandIn:
    stand_in = StandIn()
    stand_in.answer = lambda inputs, context: FOUND | {"release": OLD}
    return stand_in


@pytest.fixture
def page(triton_says: StandIn, bodies: list[bytes], tmp_path: Path) -> Generator[httpx.Client]:
    tracer = tracer_of_environment()
    with standing_in(triton_says) as address, page_of(Supervised(address), tmp_path, tracer=tracer) as page:
        yield page


def test_a_request_is_a_span_below_its_senders_and_the_question_to_triton_one_below_it(
    triton: "Server", release: Release, tmp_path: Path, bodies: list[bytes], spans: Spans
) -> None:
    (tmp_path / release.id).symlink_to(release.folder)
    text = release.truth.texts[0]
    with page_of(Supervised(triton.address), tmp_path, tracer=tracer_of_environment()) as page:
        assert page.post("/v1/search", json={"text": text}, headers=SENT).json()["release"] == release.id
    request, question = spans(2)
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, ABOVE)
    assert (request.name, request.kind) == ("POST /v1/search", Span.SPAN_KIND_SERVER)
    assert facts(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/search",
        "url.path": "/v1/search",
        "http.response.status_code": 200,
        "clip.request_id": "of-the-test",
        "clip.release": release.id,
    }
    assert (question.trace_id.hex(), question.parent_span_id) == (TRACE, request.span_id)
    assert (question.name, question.kind) == ("clip_text", Span.SPAN_KIND_CLIENT)
    assert request.start_time_unix_nano < question.start_time_unix_nano < question.end_time_unix_nano
    assert question.end_time_unix_nano < request.end_time_unix_nano
    assert all(text.encode() not in body for body in bodies)


def test_triton_is_told_where_its_own_spans_belong(page: httpx.Client, triton_says: StandIn, spans: Spans) -> None:
    told: list[dict[str, Any]] = []

    def answer(inputs: dict[str, str], context: Any) -> dict[str, Any]:
        told.append(dict(context.invocation_metadata()))
        return FOUND | {"release": OLD}

    triton_says.answer = answer
    page.get("/api/search?text=猫", headers=SENT)
    _, question = spans(2)
    assert [one["traceparent"] for one in told] == [f"00-{TRACE}-{question.span_id.hex()}-01"]


def test_a_trace_begins_here_when_nobody_sends_one_or_what_is_none(page: httpx.Client, spans: Spans) -> None:
    for headers in ({}, {"traceparent": "00-nonsense-01"}, {"traceparent": f"00-{'0' * 32}-{ABOVE}-01"}):
        assert page.get("/livez", headers=headers).status_code == 200
    found = spans(3)
    assert len({span.trace_id for span in found}) == 3
    assert {(span.name, span.parent_span_id) for span in found} == {("GET /livez", b"")}


def test_what_is_refused_is_a_span_with_its_status_and_an_error_only_where_it_is_the_servers(
    page: httpx.Client, triton_says: StandIn, spans: Spans, bodies: list[bytes]
) -> None:
    def refuse(inputs: dict[str, str], context: Any) -> dict:
        context.abort(grpc.StatusCode.UNAVAILABLE, "full of 猫")
        raise AssertionError

    triton_says.answer = refuse
    page.get("/api/search?text=猫")
    page.get("/nothing")
    page.get("/api/search?text=猫&top=0")
    page.get("/livez", headers={"Host": "evil.example"})
    busy, question, *others = spans(5)
    assert facts(busy)["http.response.status_code"] == 503 and busy.status.code == Status.STATUS_CODE_ERROR
    assert question.status == Status(code=Status.STATUS_CODE_ERROR, message="InferenceServerException")
    assert [facts(span)["http.response.status_code"] for span in others] == [404, 400, 200]
    assert {span.status.code for span in others} == {Status.STATUS_CODE_UNSET}
    assert others[0].name == "GET" and "http.route" not in facts(others[0])
    assert not any(span.events for span in (busy, question, *others))
    assert all("猫".encode() not in body for body in bodies)


def test_a_collector_that_is_not_there_delays_no_answer(
    triton_says: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_to(free_port(), monkeypatch)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    tracer = tracer_of_environment()
    with standing_in(triton_says) as address, page_of(Supervised(address), tmp_path, tracer=tracer) as page:
        for _ in range(20):
            started = time.monotonic()
            assert page.get("/livez").status_code == 200
            assert time.monotonic() - started < 1


def test_without_the_variable_no_sdk_is_imported() -> None:  # FastAPI looks for the bare interface itself
    code = """
import sys
from clip_core.serve import gateway, traces
assert traces.tracer_of_environment() is None
with traces.question(None, "clip_text") as headers:
    assert headers == {}
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ENDPOINTS}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_package_that_lacks_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:4318/v1/traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UserError, match=rf"{ENDPOINTS[1]} is set, but .*; install clip-core\[otel\], or unset it"):
        tracer_of_environment()
