"""Requests on a real Triton that come together, that fail, and that ask too much: each gets an answer of its own."""

import re
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Thread
from time import sleep
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

from clip_core.serve import queries
from clip_core.serve.queries import encode_texts, search
from clip_core.serve.triton import Server, Triton, connect
from tests.prefect_api import until
from tests.test_triton import png_header, refusal
from tests.tiny_release import Release, triton_of
from tests.under_load import changed

OURS = "这是我们的错"  # our ValueError is raised for this text
# A slow tower, so that requests come together, which has no numbers for long texts.
SLOW = """
import time
import numpy as np
from clip_core.serve import triton_models
towers = triton_models.run


def run(session, rows):
    time.sleep(0.3)
    long = np.count_nonzero(rows > 1, axis=1) > 12  # warm-up asks for the token 1
    return np.where(long[:, None], np.float32("nan"), towers(session, rows))


triton_models.run = run
"""
UNCHECKED = """
triton_models.answer = lambda tensors: triton_models.pb.InferenceResponse(
    [triton_models.pb.Tensor(name, array) for name, array in tensors.items()]
)
"""
FAULTY = f"""
class TritonPythonModel(TritonPythonModel):
    def _token_ids(self, items):
        if "{OURS}".encode() in items:
            raise ValueError("a mistake of ours")
        return super()._token_ids(items)
"""
LONG = "红" * 13


class Faulty(NamedTuple):
    triton: Triton
    server: Server
    first: str  # the ids of the releases
    second: str


@pytest.fixture(scope="module")
def faulty(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator[Faulty]:
    """A slow server with faults in its public release; beside it another release, with a tower that is soon overloaded
    and, like that of a GPU server, does not look at its numbers.
    """
    folder = tmp_path_factory.mktemp("faulty")

    def append(models: Path, model: str, code: str) -> None:
        with (models / model / "1" / "model.py").open("a") as file:
            file.write(code)

    def fail(release: Path) -> None:
        append(release / "models", "text_preprocess", FAULTY)
        append(release / "models", "text_core", SLOW)

    def overload(release: Path) -> None:
        append(release / "models", "text_core", SLOW + UNCHECKED)
        for config in (release / "models" / "text_core").rglob("*.pbtxt"):
            config.write_text(config.read_text().replace("5000000", "50000"))  # microseconds that a request may wait

    first, second = changed(release, folder / "first", fail), changed(release, folder / "second", overload)
    with triton_of(first, second, folder=folder / "served") as triton:
        yield Faulty(triton, triton.server, first.id, second.id)


def ask_together(server: Server, texts: Sequence[str]) -> list[queries.Found | str]:
    """What each text's own client gets: an answer or a status, all asked at the same time."""
    from tritonclient.utils import InferenceServerException

    def ask(text: str) -> queries.Found | str:
        with closing(connect(server.address)) as client:
            try:
                return search(client, [text])[0]
            except InferenceServerException as error:
                return str(error.status())
            except ValueError as error:
                return str(error)

    with ThreadPoolExecutor(len(texts)) as threads:
        return list(threads.map(ask, texts))


def batches_of(server: Server, model: str) -> tuple[int, int]:
    """How many texts the model has encoded so far, and in how many batches."""
    with closing(connect(server.address)) as client:
        (stats,) = client.get_inference_statistics(model).model_stats
    return stats.inference_count, stats.execution_count


def assert_right(found: queries.Found | str, release: Release, text: str) -> None:
    assert isinstance(found, queries.Found), found
    scores = release.truth.text_features[release.truth.texts.index(text)] @ release.truth.image_features.T
    np.testing.assert_allclose(found.scores, -np.sort(-scores)[: len(found.scores)], atol=1e-5)


def test_searches_that_come_together_are_one_batch_for_the_text_model(faulty: Faulty, release: Release) -> None:
    texts = release.truth.texts[:8]
    before = batches_of(faulty.server, f"text_core_{faulty.first}")
    found = ask_together(faulty.server, texts)
    for answer, text in zip(found, texts, strict=True):
        assert_right(answer, release, text)
    num_texts, num_batches = np.subtract(batches_of(faulty.server, f"text_core_{faulty.first}"), before)
    assert num_texts == 8
    assert num_batches <= 4  # the first comes alone, perhaps others do


@pytest.mark.parametrize("bad", [" ", "\0\0", LONG, OURS], ids=["blank", "meaningless", "not finite", "our fault"])
def test_a_bad_text_among_searches_fails_alone_and_the_others_stay_in_batches(
    bad: str, faulty: Faulty, release: Release
) -> None:
    texts = release.truth.texts[:11]
    before = batches_of(faulty.server, f"text_core_{faulty.first}")
    found = ask_together(faulty.server, [*texts[:5], bad, *texts[5:]])
    refused = found.pop(5)
    assert refused == ("item 0: the text is empty" if bad in (" ", "\0\0") else "StatusCode.INTERNAL")
    for answer, text in zip(found, texts, strict=True):
        assert_right(answer, release, text)
    _, num_batches = np.subtract(batches_of(faulty.server, f"text_core_{faulty.first}"), before)
    assert num_batches < 10 or bad == LONG  # which the tower has to see, with fewer and fewer beside it


@pytest.mark.parametrize("model", ["clip_text", "clip_search"])
def test_a_mistake_of_ours_is_not_the_callers_and_the_log_explains_it(model: str, faulty: Faulty) -> None:
    status, message = refusal(faulty.server, model.format(second=faulty.second), "TEXT", [OURS.encode()])
    assert status == "StatusCode.INTERNAL"
    assert "a mistake of ours" not in message
    assert "ValueError: a mistake of ours" in explanation(faulty.server, message)


@pytest.mark.parametrize("model", ["clip_text", "clip_search", "clip_search_{second}"])
def test_what_is_no_number_is_no_answer(model: str, faulty: Faulty) -> None:
    for _ in range(2):  # also not to who asks again
        status, message = refusal(faulty.server, model.format(second=faulty.second), "TEXT", [LONG.encode()])
        assert status == "StatusCode.INTERNAL"
    assert "text_features: not finite" in explanation(faulty.server, message)


def explanation(server: Server, message: str) -> str:
    """What the log says of the error in a message; of a model that was asked by another one, what it says of that."""
    (number,) = re.findall("internal error ([0-9a-f]{8})", message)
    entry = re.compile(f"error {number}: (?:Traceback|FloatingPointError).*\n")
    # Triton's Python models log in a thread of its own: the answer may come before its line, or a part of it, is there
    (line,) = until(lambda: entry.findall(server.log.read_text(encoding="utf-8")), every=0.05)
    return explanation(server, line) if "internal error" in line else line


def test_a_search_whose_text_model_is_overloaded_is_told_so(faulty: Faulty) -> None:
    busy = Thread(target=ask_text_model, args=(faulty,))
    busy.start()
    sleep(0.1)
    status, message = refusal(faulty.server, f"clip_search_{faulty.second}", "TEXT", ["红色".encode()])
    busy.join()
    assert (status, "Request timeout expired" in message) == ("StatusCode.UNAVAILABLE", True), message


def ask_text_model(faulty: Faulty) -> None:
    with closing(connect(faulty.server.address)) as client:
        encode_texts(client, ["红色"], f"clip_text_{faulty.second}")


def test_a_search_whose_text_model_is_not_there_is_told_so(faulty: Faulty) -> None:
    faulty.triton.unload(f"clip_text_{faulty.second}")
    status, message = refusal(faulty.server, f"clip_search_{faulty.second}", "TEXT", ["红色".encode()])
    faulty.triton.load(f"clip_text_{faulty.second}")
    assert status == "StatusCode.UNAVAILABLE", message


TOO_MUCH = {  # model, input, items, reason
    "bytes of texts": ("clip_text", "TEXT", [b"a" * 16_000] * 17, "have 272000 bytes in all; 262144 are allowed"),
    "bytes of images": ("clip_image", "IMAGE", [bytes(15 * 2**20)] * 5, "have 78643200 bytes in all; 67108864 are"),
    "pixels": ("clip_image", "IMAGE", [png_header(6_000, 6_000)] * 5, "have 180000000 pixels in all; 160000000 are"),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_a_request_that_is_too_much_as_a_whole_is_refused_before_it_is_read(case: str, triton: Server) -> None:
    model, name, items, reason = TOO_MUCH[case]
    status, message = refusal(triton, model, name, items)
    assert (status, reason in message) == ("StatusCode.INVALID_ARGUMENT", True), message


def test_the_client_splits_what_is_too_much_for_one_request(triton: Server) -> None:
    texts = [character * 5_000 for character in "红黄蓝绿" * 6]  # 360 KB
    with closing(connect(triton.address)) as client:
        features = encode_texts(client, texts)
    np.testing.assert_allclose(features[:4], features[-4:], atol=1e-5)
    image = png_header(6_000, 6_000)
    split = queries.in_requests([image] * 9 + [b"none"] * 70, queries.SHARES["IMAGE"])
    assert [len(request) for request in split] == [4, 4, 64, 7]


def test_a_tower_computes_no_column_of_padding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    from clip_core.serve import triton_models

    token_ids = np.array([[1, 5, 2, 0, 0, 0, 0, 0], [1, 5, 6, 2, 0, 0, 0, 0]])
    assert np.array_equal(triton_models._without_padding(token_ids), token_ids[:, :4])
