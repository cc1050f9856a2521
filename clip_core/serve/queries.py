"""What to ask the served models, and their answers as arrays; gRPC."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.errors import UserError
from clip_core.image import decoded_size

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient, aio
    from tritonclient.utils import InferenceServerException

AT_ONCE = 64  # the models' max_batch_size
LENGTHS = (8, 16, 32)
# What one request may hold in all, besides what each of its items may; the models refuse more.
MAX_TEXTS_BYTES = 256 * 2**10
MAX_IMAGES_BYTES = 64 * 2**20
MAX_IMAGES_PIXELS = 160_000_000  # decoded
TIMEOUT = 60  # seconds
# When one request says that a text or a picture is longer than it is, Triton 2.51 says so to all of its batch.
ANOTHERS = "incomplete string"
ATTEMPTS = 10
BAD_INPUT = "bad input: "  # begins what the models say of a caller's mistake


def lengths_of(context_length: int) -> list[int]:
    """What token_ids are padded to, one of these, so that Triton's batcher finds equal shapes to join."""
    return [*(length for length in LENGTHS if length < context_length), context_length]


class Found(NamedTuple):
    ids: list[str]
    scores: np.ndarray  # (k,), best first
    release: str


class Judged(NamedTuple):
    """Pictures against labels: (pictures, labels), the labels as given."""

    scores: np.ndarray  # cosines
    probabilities: np.ndarray  # that a label is right, whatever the others are; (pictures, 0) without a calibration
    shares: np.ndarray  # that it is right if just one of them is; likewise


def encode_texts(client: "InferenceServerClient", texts: Sequence[str], model: str = "clip_text") -> np.ndarray:
    """The texts' features by the served model, (n, embed_dim); an empty text is refused."""
    _refuse_one(texts)
    return _ask_all(client, model, "TEXT", [text.encode() for text in texts], ["text_features"])[0]


def encode_images(client: "InferenceServerClient", images: Sequence[bytes], model: str = "clip_image") -> np.ndarray:
    """The features of the encoded pictures by the served model, (n, embed_dim)."""
    return _ask_all(client, model, "IMAGE", images, ["image_features"])[0]


def search(
    client: "InferenceServerClient", texts: Sequence[str], model: str = "clip_search", gallery: str = ""
) -> list[Found]:
    """The pictures that are found for each text in the named gallery of what serves; without a name, in its first."""
    _refuse_one(texts)
    return _find(client, model, "TEXT", [text.encode() for text in texts], gallery)


def similar(
    client: "InferenceServerClient", images: Sequence[bytes], model: str = "clip_similar", gallery: str = ""
) -> list[Found]:
    """As `search`, by encoded pictures."""
    return _find(client, model, "IMAGE", images, gallery)


def classify(
    client: "InferenceServerClient",
    images: Sequence[bytes],
    labels: Sequence[str],
    templates: Sequence[str] = (),
    model: str = "clip_classify",
) -> Judged:
    """The encoded pictures against the labels, in templates with {} (none: our general ones)."""
    _refuse_one(labels)
    beside = {"LABELS": labels} | ({"TEMPLATES": templates} if templates else {})
    return Judged(*_ask_all(client, model, "IMAGE", images, ["scores", "probabilities", "shares"], beside))


def _find(client: "InferenceServerClient", model: str, name: str, items: Sequence[bytes], gallery: str) -> list[Found]:
    beside = {"GALLERY": [gallery]} if gallery else {}
    ids, scores, releases = _ask_all(client, model, name, items, ["ids", "scores", "release"], beside)
    return [
        Found([image_id.decode() for image_id in row], row_scores, release.decode())
        for row, row_scores, (release,) in zip(ids, scores, releases, strict=True)
    ]


def _refuse_one(texts: Sequence[str]) -> None:
    if isinstance(texts, str):  # a text is a sequence, too: of its characters
        raise TypeError(f"a list of texts is wanted, not one text: [{texts[:40]!r}]")


def question(model: str, text: bytes, image: bytes) -> dict[str, np.ndarray]:
    """What a public model can be asked about a text and a picture."""
    asked = {"IMAGE": image} if model.startswith(("clip_image", "clip_similar", "clip_classify")) else {"TEXT": text}
    asked |= {"LABELS": text} if model.startswith("clip_classify") else {}
    return {name: np.array([[item]], dtype=object) for name, item in asked.items()}


def release_behind(client: "InferenceServerClient", model: str, text: bytes, image: bytes) -> str:
    """The release with which the public model answers a text, or a picture."""
    return ask(client, model, question(model, text, image), ["release"])[0][0, 0].decode()


def _ask_all(
    client: "InferenceServerClient",
    model: str,
    name: str,
    items: Sequence[bytes],
    outputs: list[str],
    beside: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[np.ndarray]:
    """The outputs for all items; what stands beside them is the same for each."""
    answers = []
    for some in in_requests(items, SHARES[name]):
        tensors = {name: np.array(some, dtype=object).reshape(-1, 1)}
        for other, texts in beside.items():
            tensors[other] = np.array([[text.encode() for text in texts]] * len(some), dtype=object)
        answers.append(ask(client, model, tensors, outputs))
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def ask(
    client: "InferenceServerClient",
    model: str,
    tensors: dict[str, np.ndarray],
    outputs: list[str],
    timeout: float = TIMEOUT,
) -> list[np.ndarray]:
    """The outputs with which the served model answers; UserError with its reason when it refuses the tensors."""
    from tritonclient.utils import InferenceServerException

    for attempts_left in reversed(range(ATTEMPTS)):
        try:
            answer = client.infer(model, **_question(tensors, outputs), client_timeout=timeout)
            return [answer.as_numpy(output) for output in outputs]
        except InferenceServerException as error:
            if attempts_left and _is_anothers(error):
                continue
            if error.status() == "StatusCode.INVALID_ARGUMENT":
                raise UserError(error.message().rpartition(BAD_INPUT)[2]) from None
            raise
    raise AssertionError  # not reached: the last attempt has returned or raised


async def ask_async(
    client: "aio.InferenceServerClient",
    model: str,
    tensors: dict[str, np.ndarray],
    outputs: list[str],
    request_id: str,
    headers: dict[str, str],
) -> list[np.ndarray]:
    """As `ask`, awaited; how long it may take is the caller's to say. UserError only for what the model refuses."""
    from tritonclient.utils import InferenceServerException

    for attempts_left in reversed(range(ATTEMPTS)):
        try:
            answer = await client.infer(model, **_question(tensors, outputs), request_id=request_id, headers=headers)
            return [answer.as_numpy(output) for output in outputs]
        except InferenceServerException as error:
            if attempts_left and _is_anothers(error):
                continue
            if error.status() == "StatusCode.INVALID_ARGUMENT" and BAD_INPUT in error.message():
                raise UserError(error.message().rpartition(BAD_INPUT)[2]) from None
            raise
    raise AssertionError  # not reached: the last attempt has returned or raised


def _is_anothers(error: "InferenceServerException") -> bool:
    """Whether the mistake is that of a request that came at the same moment; ours are never malformed."""
    return ANOTHERS in error.message()


def _question(tensors: dict[str, np.ndarray], outputs: list[str]) -> dict[str, list]:
    from tritonclient.grpc import InferInput, InferRequestedOutput
    from tritonclient.utils import np_to_triton_dtype

    inputs = [InferInput(name, [*array.shape], np_to_triton_dtype(array.dtype)) for name, array in tensors.items()]
    for tensor, array in zip(inputs, tensors.values(), strict=True):
        tensor.set_data_from_numpy(array)
    return {"inputs": inputs, "outputs": [InferRequestedOutput(output) for output in outputs]}


def in_requests(items: Sequence[bytes], share: Callable[[bytes], float]) -> list[list[bytes]]:
    """The items in order, as many at a time as one request may hold."""
    requests, full = [], 0.0
    for item in items:
        part = share(item)
        if not requests or len(requests[-1]) == AT_ONCE or full + part > 1:
            requests.append([])
            full = 0.0
        requests[-1].append(item)
        full += part
    return requests


def _share_of_text(text: bytes) -> float:
    return len(text) / MAX_TEXTS_BYTES


def _share_of_image(image: bytes) -> float:
    try:
        num_pixels = math.prod(decoded_size(image))
    except UserError:  # the server says why
        num_pixels = 0
    return max(len(image) / MAX_IMAGES_BYTES, num_pixels / MAX_IMAGES_PIXELS)


SHARES = {"TEXT": _share_of_text, "IMAGE": _share_of_image}  # of what a request may hold
