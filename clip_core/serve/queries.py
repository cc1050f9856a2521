"""What to ask the served models, and their answers as arrays; gRPC."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.errors import UserError

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient, aio

AT_ONCE = 64  # the models' max_batch_size
TIMEOUT = 60  # seconds
BAD_INPUT = "bad input: "  # begins what the models say of a caller's mistake


class Found(NamedTuple):
    ids: list[str]
    scores: np.ndarray  # (k,), best first
    release: str


def encode_texts(client: "InferenceServerClient", texts: Sequence[str], model: str = "clip_text") -> np.ndarray:
    """The texts' features by the served model, (n, embed_dim); an empty text is refused."""
    _refuse_one(texts)
    return _ask_all(client, model, "TEXT", [text.encode() for text in texts], ["text_features"])[0]


def encode_images(client: "InferenceServerClient", images: Sequence[bytes], model: str = "clip_image") -> np.ndarray:
    """The features of the encoded pictures by the served model, (n, embed_dim)."""
    return _ask_all(client, model, "IMAGE", list(images), ["image_features"])[0]


def search(client: "InferenceServerClient", texts: Sequence[str], model: str = "clip_search") -> list[Found]:
    """The pictures that the served index finds for each text."""
    _refuse_one(texts)
    outputs = ["ids", "scores", "release"]
    ids, scores, releases = _ask_all(client, model, "TEXT", [text.encode() for text in texts], outputs)
    return [
        Found([image_id.decode() for image_id in row], row_scores, release.decode())
        for row, row_scores, (release,) in zip(ids, scores, releases, strict=True)
    ]


async def find(client: "aio.InferenceServerClient", text: str, gallery: str | None = None) -> Found:
    """What the served index finds for one text, in the gallery named or else in the release's first; awaited.

    How long it may take is the caller's to say.
    """
    from tritonclient.grpc import InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    inputs = []
    for name, value in (("TEXT", text), ("GALLERY", gallery)):
        if value is not None:
            inputs.append(InferInput(name, [1, 1], "BYTES"))
            inputs[-1].set_data_from_numpy(np.array([[value.encode()]], dtype=object))
    wanted = [InferRequestedOutput(output) for output in ("ids", "scores", "release")]
    try:
        answer = await client.infer("clip_search", inputs, outputs=wanted)
    except InferenceServerException as error:
        if error.status() == "StatusCode.INVALID_ARGUMENT" and BAD_INPUT in error.message():
            raise UserError(error.message().rpartition(BAD_INPUT)[2]) from None
        raise
    (ids,), (scores,), ((release,),) = (answer.as_numpy(output.name()) for output in wanted)
    return Found([image_id.decode() for image_id in ids], scores, release.decode())


def _refuse_one(texts: Sequence[str]) -> None:
    if isinstance(texts, str):  # a text is a sequence, too: of its characters
        raise TypeError(f"a list of texts is wanted, not one text: [{texts[:40]!r}]")


def release_behind(client: "InferenceServerClient", model: str, name: str, item: bytes) -> str:
    """The release with which `model` answers `item`, its input named `name`."""
    return _ask_all(client, model, name, [item], ["release"])[0][0, 0].decode()


def _ask_all(
    client: "InferenceServerClient", model: str, name: str, items: Sequence[bytes], outputs: list[str]
) -> list[np.ndarray]:
    answers = [
        _ask(client, model, name, items[start : start + AT_ONCE], outputs) for start in range(0, len(items), AT_ONCE)
    ]
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def _ask(
    client: "InferenceServerClient", model: str, name: str, items: Sequence[bytes], outputs: list[str]
) -> list[np.ndarray]:
    from tritonclient.grpc import InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    question = InferInput(name, [len(items), 1], "BYTES")
    question.set_data_from_numpy(np.array(items, dtype=object).reshape(-1, 1))
    wanted = [InferRequestedOutput(output) for output in outputs]
    try:
        answer = client.infer(model, [question], outputs=wanted, client_timeout=TIMEOUT)
    except InferenceServerException as error:
        if error.status() == "StatusCode.INVALID_ARGUMENT":
            raise UserError(error.message().rpartition(BAD_INPUT)[2]) from None
        raise
    return [answer.as_numpy(output) for output in outputs]
