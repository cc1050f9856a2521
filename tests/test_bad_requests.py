"""Bad requests of every kind to the gateway and to Triton, a few hundred: the short form of a proof."""

import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclient.grpc import service_pb2

from tests.bad_requests import KINDS, Target, ask_badly, assert_good, call
from tests.page_server import Supervised, page_of
from tests.tiny_release import Release

if TYPE_CHECKING:
    from clip_core.serve.triton import Server

NUM = 270


def test_whatever_is_asked_badly_the_good_questions_between_are_answered(
    triton: "Server", release: Release, tmp_path: Path
) -> None:
    (tmp_path / release.id).symlink_to(release.folder)
    with page_of(Supervised(triton.address), tmp_path) as client:
        gateway = client.base_url.host, client.base_url.port or 0
        found, good = ask_badly(Target(gateway, triton.address, release), range(NUM), num_threads=2)
        assert client.get("/livez").status_code == 200
    assert {kind: answers.total() for kind, answers in found.items()} == dict.fromkeys(KINDS, NUM // len(KINDS))
    assert good > 0
    for kind in ("JSON", "body", "picture"):
        assert found[kind]["400"] > 0, found[kind]
    assert found["gRPC, tensors"]["INVALID_ARGUMENT"] > 0


def test_a_malformed_text_that_comes_at_the_same_moment_fails_no_good_question(
    triton: "Server", release: Release, tmp_path: Path
) -> None:
    (tmp_path / release.id).symlink_to(release.folder)
    ended, answers = threading.Event(), []
    lie = service_pb2.ModelInferRequest(model_name="clip_search")  # ty: ignore[missing-attribute]
    lie.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1])
    lie.raw_input_contents.append(struct.pack("<I", 99) + b"x")

    def ask() -> None:
        while not ended.wait(0.02):
            answers.append(call(triton.address, "ModelInfer", lie.SerializeToString()))

    liar = threading.Thread(target=ask)
    liar.start()
    try:
        with page_of(Supervised(triton.address), tmp_path) as client:
            target = Target((client.base_url.host, client.base_url.port or 0), triton.address, release)
            for number in range(60):
                assert_good(target, number)
                assert client.get("/api/search", params={"text": "猫"}).status_code == 200
    finally:
        ended.set()
        liar.join()
    assert set(answers) == {"INVALID_ARGUMENT"}
