"""Requests that are wrong in some way, to the gateway and to its Triton: each is a function of its seed.

Good ones are asked all the while, and must be answered rightly.
"""

import base64
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc
import httpx
import numpy as np
from tritonclient.grpc import service_pb2

from clip_core.serve import queries
from clip_core.serve.triton import connect
from tests.damage import damaged
from tests.tiny_release import Release

PATIENCE = 120.0  # seconds for an answer to a request that is all there, on a machine with other work
WAIT = 3.0  # seconds for an answer to one that may say "more is to come": then the caller hangs up
SERVICE = "/inference.GRPCInferenceService/"
METHODS = (*["ModelInfer"] * 8, "ServerMetadata", "ModelConfig", "RepositoryIndex", "RepositoryModelUnload")
METHODS = (*METHODS, "SystemSharedMemoryRegister", "TraceSetting", "LogSettings", "NoSuchMethod")
TEXTS = ("", "cat", "\ud800", "\ufeff", "e\u0301", "[MASK]", "猫" * 4000, *" \0\n\u202e{猫")
VALUES: tuple[Any, ...] = (None, True, 0, -1, 10**30, 1e308, "", "猫", [], {}, [[]], ["猫", 1], {"a": None})


class Target(NamedTuple):
    gateway: tuple[str, int]
    triton: str  # host:port of its gRPC
    release: Release  # what it serves


def ask_badly(target: Target, seeds: Iterable[int], num_threads: int) -> tuple[dict[str, Counter[str]], int]:
    """How often each kind of bad request was answered by what, and how many good ones were answered meanwhile.

    AssertionError with the seed when one is answered as if the fault were the server's, or a good one wrongly.
    """
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    ended, asked = threading.Event(), [0]

    def ask(seed: int) -> None:
        kind = list(KINDS)[seed % len(KINDS)]
        answer = KINDS[kind](target, np.random.default_rng(seed))
        assert answer.partition(":")[0] not in FAULTS, f"seed {seed}, {kind}: {answer}"
        found[kind][answer] += 1

    def ask_well() -> None:
        while not ended.is_set() or not asked[0]:
            assert_good(target, asked[0])
            asked[0] += 1
            time.sleep(0.02)

    with ThreadPoolExecutor(num_threads + 1) as threads:
        good = threads.submit(ask_well)
        try:
            list(threads.map(ask, seeds))
        finally:
            ended.set()
        good.result()
    return found, asked[0]


# Of the server: it fails, is not there, or does not answer.
FAULTS = {"500", "502", "503", "no answer", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN"}


def assert_good(target: Target, number: int) -> None:
    """A good question, by turns of a text or a picture to the gateway, and of a text to Triton, is answered rightly."""
    truth, place = target.release.truth, number % 12
    url = "http://{}:{}/v1/search".format(*target.gateway)
    if number % 3 == 0:
        with closing(connect(target.triton)) as client:
            (found,) = queries.search(client, [truth.texts[place]])
        scores, features = found.scores, truth.text_features[place]
    else:
        features = (truth.text_features if number % 3 == 1 else truth.image_features)[place]
        question: dict[str, Any] = {"json": {"text": truth.texts[place]}}
        if number % 3 == 2:
            question = {"content": target.release.store.image_bytes(place), "headers": {"Content-Type": "image/png"}}
        answer = httpx.post(url, timeout=PATIENCE, trust_env=False, **question)
        assert answer.status_code == 200, f"a good question: {answer.status_code} {answer.text}"
        scores = [hit["score"] for hit in answer.json()["hits"]]
    expected = np.sort(truth.image_features @ features)[::-1][: len(scores)]
    np.testing.assert_allclose(scores, expected, atol=2e-4)


# To the gateway.


def _send(target: Target, data: bytes, wait: float) -> str:
    """The status of the answer; "closed" without one, "hung up" when none came in time."""
    with socket.create_connection(target.gateway, PATIENCE) as connection:
        connection.settimeout(wait)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may answer and close before all is sent
                connection.sendall(data)
            status = connection.recv(4096)[9:12].decode("latin-1")
        except TimeoutError:
            return "no answer" if wait == PATIENCE else "hung up"
        except ConnectionResetError:
            return "closed"
    return status or "closed"


def _request(path: str, body: bytes, kind: str, *headers: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1".encode(), b"Host: localhost", f"Content-Type: {kind}".encode(), *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"Connection: close", b"", body])


def _question(target: Target, random: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """A path and a good question."""
    picture = target.release.store.image_bytes(int(random.integers(36)))
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return {
        0: ("/v1/embeddings", {"model": "chinese-clip", "input": ["猫", url], "encoding_format": "float"}),
        1: ("/v1/search", {"text": "猫", "image": url, "limit": 3, "filter": {"family": "red"}, "text_weight": 0.5}),
        2: ("/v1/classify", {"image": url, "labels": ["猫", "狗"], "templates": ["{}", "一只{}"]}),
    }[int(random.integers(3))]


def _json(target: Target, random: np.random.Generator) -> str:
    path, question = _question(target, random)
    name = list(question)[random.integers(len(question))]
    value = VALUES[random.integers(len(VALUES))]
    changed = question | {name if random.random() < 0.8 else name * 2: value}
    return _send(target, _request(path, json.dumps(changed).encode(), "application/json"), PATIENCE)


def _body(target: Target, random: np.random.Generator) -> str:
    path, question = _question(target, random)
    bodies = (
        lambda: damaged(json.dumps(question).encode(), int(random.integers(2**31))),
        lambda: random.bytes(int(random.integers(3000))),
        lambda: b"[" * int(random.integers(200_000)),
        lambda: json.dumps(question).encode("utf-16"),
    )
    kind = ("application/json", "image/png", "text/plain", "multipart/form-data; boundary=x", "")[random.integers(5)]
    encoding = b"Content-Encoding: gzip" if random.random() < 0.2 else b"Accept: */*"
    return _send(target, _request(path, bodies[random.integers(len(bodies))](), kind, encoding), PATIENCE)


def _headers(target: Target, random: np.random.Generator) -> str:
    lines = (
        b"Content-Length: -1",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"X: " + b"a" * int(random.integers(100_000)),
        b"\0: \xff",
        b"Host: elsewhere",
        b"Origin: http://elsewhere",
        b"Authorization: Basic " + base64.b64encode(random.bytes(9)),
        b"Expect: 100-continue",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13",
        b"X-Request-Id: a\tb",
    )
    path, question = _question(target, random)
    request = _request(path, json.dumps(question).encode(), "application/json", lines[random.integers(len(lines))])
    if random.random() < 0.6:
        head, end, body = request.partition(b"\r\n\r\n")
        request = damaged(head, int(random.integers(2**31))) + end + body
    return _send(target, request, WAIT)


def _picture(target: Target, random: np.random.Generator) -> str:
    path, _ = _question(target, random)
    rest = {"/v1/classify": '{"labels": ["猫"]}', "/v1/embeddings": '{"model": "chinese-clip"}'}.get(path, "{}")
    picture = _broken_picture(target, random)
    return _send(target, _request(f"{path}?question={quote(rest)}", picture, "image/png"), PATIENCE)


def _broken_picture(target: Target, random: np.random.Generator) -> bytes:
    images = target.release.golden.images  # PNG and JPEG by turns
    return damaged(images[random.integers(len(images))], int(random.integers(2**31)))


def _text(target: Target, random: np.random.Generator) -> str:
    text = _odd_text(random)
    if random.random() < 0.5:
        body = json.dumps({"text": text, "gallery": random.choice(["test", "../..", ""])}).encode()
        return _send(target, _request("/v1/search", body, "application/json"), PATIENCE)
    query = quote(random.bytes(20) if random.random() < 0.3 else text.encode(errors="surrogatepass"))
    path = f"/api/search?text={query}" if random.random() < 0.7 else f"/images/{query}/{query[:9]}/{query}"
    return _send(target, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(), PATIENCE)


def _odd_text(random: np.random.Generator) -> str:
    return "".join(random.choice(TEXTS, int(random.integers(1, 6))))


def _hang_up(target: Target, random: np.random.Generator) -> str:
    path, question = _question(target, random)
    request = _request(path, json.dumps(question).encode(), "application/json")
    return _leave(target.gateway, request[: random.integers(len(request) + 1)], random)


def _leave(address: tuple[str, int], data: bytes, random: np.random.Generator) -> str:
    with socket.create_connection(address, PATIENCE) as connection:
        if random.random() < 0.5:  # not in good manners: with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(ConnectionError):
            connection.sendall(data)
    return "hung up"


# To Triton.


def _infer(random: np.random.Generator, model: str, name: str, item: bytes) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)  # ty: ignore[missing-attribute]
    tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(item)) + item)
    if random.random() < 0.7:  # else the item alone may be wrong
        (
            lambda: request.inputs.add(name="MORE", datatype="FP32", shape=[1]),
            lambda: setattr(tensor, "name", "text"),
            lambda: setattr(tensor, "datatype", str(random.choice(["FP32", "INT64", "BOOL", "", "BYTES2"]))),
            lambda: tensor.shape.append(int(random.choice([0, -1, 2, 2**40]))),
            lambda: tensor.shape.__setitem__(0, int(random.choice([0, -1, 3, 65, 2**62]))),
            lambda: request.raw_input_contents.__setitem__(0, random.bytes(int(random.integers(20)))),
            lambda: request.raw_input_contents.append(b"x"),
            lambda: request.outputs.add(name="none"),
            lambda: setattr(request, "model_name", str(random.choice(["", "text_core", "..", "clip_text\0"]))),
            lambda: setattr(request, "model_version", "99999999999999999999"),
            lambda: request.parameters["sequence_id"].__setattr__("int64_param", 2**62),
            lambda: tensor.parameters["shared_memory_region"].__setattr__("string_param", "mine"),
        )[random.integers(12)]()
    return request


def _tensors(target: Target, random: np.random.Generator) -> str:
    if random.random() < 0.4:
        request = _infer(random, "clip_image", "IMAGE", _broken_picture(target, random))
    else:
        item = random.bytes(30) if random.random() < 0.3 else _odd_text(random).encode(errors="surrogatepass")
        request = _infer(random, str(random.choice(["clip_text", "clip_search"])), "TEXT", item)
    return call(target.triton, "ModelInfer", request.SerializeToString())


def _protobuf(target: Target, random: np.random.Generator) -> str:
    good = _infer(random, "clip_text", "TEXT", "猫".encode()).SerializeToString()
    data = damaged(good, int(random.integers(2**31))) if random.random() < 0.7 else random.bytes(40)
    return call(target.triton, str(random.choice(METHODS)), data)


def call(address: str, method: str, data: bytes) -> str:
    """The status with which Triton answers these bytes of protobuf."""
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(SERVICE + method)(data, timeout=PATIENCE)
        except grpc.RpcError as error:
            status: Any = error
            if "internal error" in (said := status.details()):  # as our models say it
                return "500"
            if "restricted" in said:
                return "not allowed"
            name = status.code().name
            return f"{name}: {said}" if name in FAULTS else name
    return "OK"


def _no_grpc(target: Target, random: np.random.Generator) -> str:
    host, port = target.triton.rsplit(":", 1)
    start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if random.random() < 0.6 else b""
    return _leave((host, int(port)), start + random.bytes(int(random.integers(2000))), random)


KINDS: dict[str, Callable[[Target, np.random.Generator], str]] = {
    "JSON": _json,
    "body": _body,
    "headers": _headers,
    "picture": _picture,
    "text": _text,
    "hang-up": _hang_up,
    "gRPC, tensors": _tensors,
    "gRPC, bytes of protobuf": _protobuf,
    "gRPC, no HTTP/2": _no_grpc,
}
