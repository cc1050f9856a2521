"""The page's application for tests: served by a thread, before a real Triton or one that says what a test wants."""

import json
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from clip_core.data.store import open_store
from clip_core.serve.assemble import PUBLIC
from clip_core.serve.pictures import INDEXES

if TYPE_CHECKING:
    import httpx

NUM_THREADS = 128  # more questions can hang in the stand-in than the page lets through
FOUND = {"ids": ["b", "a"], "scores": [0.9, 0.1]}


@dataclass
class Supervised:
    """What the page is told of Triton; a test changes it as a supervisor would."""

    address: str
    release: str | None = None
    states: dict[str, str] = field(default_factory=lambda: dict.fromkeys(PUBLIC, "ok"))


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`clip_search` that does what `answer` does: it gets the inputs as texts and gives ids, scores and release."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, str], grpc.ServicerContext], dict[str, Any]] | None = None
        self.asked: list[dict[str, str]] = []

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        inputs = {
            entry.name: deserialize_bytes_tensor(raw)[0].decode()
            for entry, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        self.asked.append(inputs)
        assert request.model_name == "clip_search" and self.answer is not None
        found = self.answer(inputs, context)
        answer = service_pb2.ModelInferResponse(  # ty: ignore[missing-attribute]
            model_name=request.model_name
        )
        for name, values in (("ids", found["ids"]), ("scores", found["scores"]), ("release", [found["release"]])):
            kind = "FP32" if name == "scores" else "BYTES"
            answer.outputs.add(name=name, datatype=kind, shape=[1, len(values)])
            answer.raw_output_contents.append(
                np.array(values, dtype=np.float32).tobytes()
                if name == "scores"
                else serialize_byte_tensor(np.array([value.encode() for value in values], dtype=object)).item()
            )
        return answer


@contextmanager
def standing_in(stand_in: StandIn, port: int = 0) -> Generator[str]:
    """The address at which the stand-in answers while the block runs."""
    server = grpc.server(ThreadPoolExecutor(NUM_THREADS), options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield address
    finally:
        server.stop(grace=0).wait()


@contextmanager
def page_of(
    backend: Any, releases: Path, kept_answers: int = 0, limits: Any = None, tracer: Any = None, **options: Any
) -> Generator["httpx.Client"]:
    """A client of the page, which a thread serves."""
    import httpx
    import uvicorn

    from clip_core.serve.answers import Answers
    from clip_core.serve.app import make_app
    from clip_core.serve.canary import Canary
    from clip_core.serve.upstream import Upstream

    canary = Canary(releases.parent, limits)
    app = make_app(Upstream(backend, Answers(kept_answers), canary, tracer), releases, **options)
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the page's server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    limits = httpx.Limits(max_connections=None)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30, limits=limits) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def add_gallery(releases: Path, release: str, name: str, images: Path) -> None:
    """The store in `images` as a gallery of the release, with an index of features that say nothing."""
    folder, index = releases / release / "galleries", releases / release / INDEXES / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(images)
    index.mkdir(parents=True)
    image_ids = open_store(images).image_ids
    np.save(index / "features.npy", np.zeros((len(image_ids), 2), np.float32))
    (index / "image_ids.json").write_text(json.dumps(image_ids))
    (index / "index.json").write_text(json.dumps({"weights_id": "of no weights", "recall": 1.0}))
