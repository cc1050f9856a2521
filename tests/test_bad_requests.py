"""Bad requests of every kind to the gateway and to Triton, a few hundred: the short form of a proof."""

from typing import TYPE_CHECKING

from tests.bad_requests import KINDS, Target, ask_badly
from tests.page_server import Supervised, page_of
from tests.tiny_release import Release

if TYPE_CHECKING:
    from clip_core.serve.triton import Server

NUM = 270


def test_whatever_is_asked_badly_the_good_questions_between_are_answered(triton: "Server", release: Release) -> None:
    with page_of(Supervised(triton.address), release.folder.parent) as client:
        (release.folder.parent / release.id).symlink_to(release.folder)
        gateway = client.base_url.host, client.base_url.port or 0
        found, good = ask_badly(Target(gateway, triton.address, release), range(NUM), num_threads=2)
        assert client.get("/livez").status_code == 200
    assert {kind: answers.total() for kind, answers in found.items()} == dict.fromkeys(KINDS, NUM // len(KINDS))
    assert good > 0
    for kind in ("JSON", "body", "picture"):
        assert found[kind]["400"] > 0, found[kind]
    assert found["gRPC, tensors"]["INVALID_ARGUMENT"] > 0
