"""The models that Triton's Python backend runs; importable inside Triton only, where its utilities exist."""

import json
import math
import secrets
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # ty: ignore[import-not-found]

from clip_core.errors import UserError
from clip_core.image import decoded_size, pixels_of
from clip_core.inference.nearest import top_k
from clip_core.inference.onnx_towers import open_session, run
from clip_core.model.contract import read_contract
from clip_core.serve.index import Index, read_index
from clip_core.serve.queries import ANOTHERS, BAD_INPUT, MAX_IMAGES_BYTES, MAX_IMAGES_PIXELS, MAX_TEXTS_BYTES
from clip_core.text import load_tokenizer

MAX_TEXT_BYTES = 16 * 2**10
MAX_IMAGE_BYTES = 16 * 2**20
MAX_IMAGE_PIXELS = 40_000_000
LENGTHS = (8, 16, 32)  # token_ids are padded to one of these, so that Triton's batcher finds equal shapes to join
# What Triton 2.51 says of a model that is overloaded or not there; to a model that asks it, always as INTERNAL.
NOT_NOW = ("Exceeds maximum queue size", "Request timeout expired", "is not ready", "no available versions", ANOTHERS)


class Unavailable(Exception):
    """Not now, but perhaps a little later: a model that is asked is overloaded, not there, or of another release."""


class TextPreprocess:
    """`TEXT` -> `token_ids` and `release`."""

    def initialize(self, args: dict[str, str]) -> None:
        _check_numbers()
        folder = _folder(args)
        contract = read_contract(folder)
        longest = contract.context_length
        self.tokenizer = load_tokenizer(folder / contract.tokenizer, longest)
        self.lengths = [*(length for length in LENGTHS if length < longest), longest]
        self.release = _read_release(folder)

    def execute(self, requests: Sequence["pb.InferenceRequest"]) -> list["pb.InferenceResponse"]:
        return [_prepare(request, "TEXT", "token_ids", self._token_ids, self.release) for request in requests]

    def _token_ids(self, items: list[bytes]) -> np.ndarray:
        _check_sum("texts", "bytes", map(len, items), MAX_TEXTS_BYTES)
        rows = self.tokenizer(_each(items, _read_text))
        for place, row in enumerate(rows):
            if np.count_nonzero(row) <= 2:  # [CLS] and [SEP]: characters that mean nothing
                raise UserError(f"item {place}: the text is empty")
        length = next(length for length in self.lengths if length >= rows.shape[1])
        return np.pad(rows, ((0, 0), (0, length - rows.shape[1])))  # (n, length)


class ImagePreprocess:
    """`IMAGE` -> `pixels` and `release`."""

    def initialize(self, args: dict[str, str]) -> None:
        _check_numbers()
        self.contract = read_contract(_folder(args))
        self.release = _read_release(_folder(args))

    def execute(self, requests: Sequence["pb.InferenceRequest"]) -> list["pb.InferenceResponse"]:
        return [_prepare(request, "IMAGE", "pixels", self._pixels, self.release) for request in requests]

    def _pixels(self, items: list[bytes]) -> np.ndarray:
        _check_sum("images", "bytes", map(len, items), MAX_IMAGES_BYTES)
        _check_sum("images", "pixels", _each(items, _num_pixels), MAX_IMAGES_PIXELS)  # before one is decoded
        return np.stack(_each(items, self._read_image))  # (n, 3, image_size, image_size)

    def _read_image(self, item: bytes) -> np.ndarray:
        return pixels_of(item, self.contract.image_size, self.contract.preprocessing, MAX_IMAGE_PIXELS)


class OnnxModel:
    """An ONNX file on the CPU, for servers without the onnxruntime backend."""

    def initialize(self, args: dict[str, str]) -> None:
        _check_numbers()
        threads = json.loads(args["model_config"])["parameters"]["intra_op_thread_count"]["string_value"]
        self.session = open_session(_folder(args) / "model.onnx", int(threads))
        (self.input,), (self.output,) = self.session.get_inputs(), self.session.get_outputs()

    def execute(self, requests: Sequence["pb.InferenceRequest"]) -> list["pb.InferenceResponse"]:
        arrays = [pb.get_input_tensor_by_name(request, self.input.name).as_numpy() for request in requests]
        responses: list = [None] * len(requests)
        for shape in {array.shape[1:] for array in arrays}:  # requests of one shape make one batch
            places = [place for place, array in enumerate(arrays) if array.shape[1:] == shape]
            try:
                batch = np.concatenate([arrays[place] for place in places])
                features = run(self.session, _without_padding(batch) if self.input.name == "token_ids" else batch)
                for place in places:
                    responses[place] = _answer({self.output.name: features[: len(arrays[place])]})
                    features = features[len(arrays[place]) :]
            except Exception as error:  # the edge, as below
                for place in places:
                    responses[place] = _refusal(error)
        return responses


class Search:
    """Asks this release's text model for the features and finds the pictures that are nearest to them."""

    def initialize(self, args: dict[str, str]) -> None:
        _check_numbers()
        folders = sorted((_folder(args) / "galleries").iterdir())
        self.galleries = {folder.name: read_index(folder) for folder in folders}
        self.release = _read_release(_folder(args))
        self.top_k = int(json.loads(args["model_config"])["parameters"]["top_k"]["string_value"])
        # Beside clip_search_<release> serves clip_text_<release> (clip_core/serve/live.py).
        self.text_model = "clip_text" + args["model_name"].removeprefix("clip_search")

    def execute(self, requests: Sequence["pb.InferenceRequest"]) -> list["pb.InferenceResponse"]:
        responses: list = [None] * len(requests)
        asked: dict[str, list[int]] = {}  # gallery -> places of the requests
        for place, request in enumerate(requests):
            try:
                asked.setdefault(self._gallery(request), []).append(place)
            except UserError as error:
                responses[place] = _refusal(error)
        for gallery, places in asked.items():
            texts = [pb.get_input_tensor_by_name(requests[place], "TEXT").as_numpy() for place in places]
            for place, answer in zip(places, self._answers(texts, self.galleries[gallery]), strict=True):
                responses[place] = answer
        return responses

    def _answers(self, texts: list[np.ndarray], gallery: Index) -> list["pb.InferenceResponse"]:
        """The answer to each request's texts: those of requests that came together are one batch for the text model.

        When that fails, each half is asked for itself, so that a bad text fails its own request alone.
        """
        try:
            found = self._find(np.concatenate(texts), gallery)  # at most max_batch_size: Triton's batcher counts items
            ends = np.cumsum([len(some) for some in texts])[:-1]
            parts = [np.split(whole, ends) for whole in found.values()]
            return [_answer(dict(zip(found, some, strict=True))) for some in zip(*parts, strict=True)]
        except Exception as error:  # the edge, as below
            if len(texts) == 1 or isinstance(error, Unavailable):
                return [_refusal(error) for _ in texts]
        half = len(texts) // 2
        return self._answers(texts[:half], gallery) + self._answers(texts[half:], gallery)

    def _find(self, texts: np.ndarray, gallery: Index) -> dict[str, np.ndarray]:
        # Not async_exec: with it, requests that come together wait half a second in Triton 2.51.
        question = pb.InferenceRequest(
            model_name=self.text_model,
            requested_output_names=["text_features", "release"],
            inputs=[pb.Tensor("TEXT", texts)],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
        )
        answer = question.exec()
        if answer.has_error():
            raise _error_of(answer.error().message())
        release = pb.get_output_tensor_by_name(answer, "release").as_numpy()
        if encoder := {item.decode() for item in release.ravel()} - {self.release}:
            raise Unavailable(f"the index is of release {self.release}, the text model of {', '.join(encoder)}")
        features = pb.get_output_tensor_by_name(answer, "text_features").as_numpy()
        if not np.isfinite(features).all():  # onnxruntime's own backend does not check
            raise FloatingPointError("text_features: not finite")
        places, scores = top_k(gallery.features, features, self.top_k)
        ids = np.array([[gallery.image_ids[place].encode() for place in row] for row in places], dtype=object)
        return {"ids": ids, "scores": scores, "release": release}

    def _gallery(self, request: "pb.InferenceRequest") -> str:
        """The gallery that the request names; the first if it names none."""
        tensor = pb.get_input_tensor_by_name(request, "GALLERY")
        if tensor is None:
            return next(iter(self.galleries))
        names = {item.decode(errors="replace") for item in tensor.as_numpy().ravel()}
        if len(names) > 1 or not names <= self.galleries.keys():
            raise UserError(
                f"no gallery {', '.join(sorted(names))}: one of {', '.join(self.galleries)} is searched at a time"
            )
        return names.pop()


def _check_numbers() -> None:
    """Sends numbers through the stub and back: Triton 2.51's gets them wrong under numpy 2 without a word."""
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = pb.Tensor.from_dlpack("got", pb.Tensor("sent", sent).to_dlpack()).as_numpy()
    assert np.array_equal(got, sent), f"Triton's Python stub computes wrong numbers under numpy {np.__version__}"


def _folder(args: dict[str, str]) -> Path:
    return Path(args["model_repository"], args["model_version"])


def _read_release(folder: Path) -> str:
    return (folder / "release.txt").read_text(encoding="utf-8").strip()


def _without_padding(token_ids: np.ndarray) -> np.ndarray:
    """The rows as wide as the longest is: what Triton's batcher needs, a tower would only compute in vain."""
    return token_ids[:, : max(2, np.count_nonzero(token_ids, axis=1).max())]


def _prepare(
    request: "pb.InferenceRequest",
    name: str,
    output: str,
    prepare: Callable[[list[bytes]], np.ndarray],
    release: str,
) -> "pb.InferenceResponse":
    """What a tower takes for each item of the request, and the release; a bad item fails its own request alone."""
    items = pb.get_input_tensor_by_name(request, name).as_numpy().ravel().tolist()
    try:
        releases = np.full((len(items), 1), release.encode(), dtype=object)
        return _answer({output: prepare(items), "release": releases})
    except Exception as error:  # the edge: whatever it is, the other requests get their answers
        return _refusal(error)


def _each(items: list[bytes], read: Callable[[bytes], Any]) -> list:
    """`read` of every item; its UserError gets the item's place in the request."""
    results = []
    for place, item in enumerate(items):
        try:
            results.append(read(item))
        except UserError as error:
            raise UserError(f"item {place}: {error}") from None
    return results


def _check_sum(what: str, unit: str, sizes: Iterable[int], most: int) -> None:
    if (total := sum(sizes)) > most:
        raise UserError(f"the {what} of the request have {total} {unit} in all; {most} are allowed")


def _num_pixels(item: bytes) -> int:
    if len(item) > MAX_IMAGE_BYTES:
        raise UserError(f"the image has {len(item)} bytes; {MAX_IMAGE_BYTES} are allowed")
    return math.prod(decoded_size(item, MAX_IMAGE_PIXELS))


def _read_text(item: bytes) -> str:
    if len(item) > MAX_TEXT_BYTES:
        raise UserError(f"the text has {len(item)} bytes; {MAX_TEXT_BYTES} are allowed")
    try:
        text = item.decode()
    except UnicodeDecodeError:
        raise UserError("the text is not valid UTF-8") from None
    if not text.strip():
        raise UserError("the text is empty")
    return text


def _answer(tensors: dict[str, np.ndarray]) -> "pb.InferenceResponse":
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return _refusal(FloatingPointError(f"{name}: not finite"))
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in tensors.items()])


def _refusal(error: Exception) -> "pb.InferenceResponse":
    """What the caller of a request that failed gets: the reason, or if the fault is ours, what to look for in the log.

    A Python ValueError is ours, too, unless it is a UserError.
    """
    if isinstance(error, UserError):
        return pb.InferenceResponse(error=pb.TritonError(f"{BAD_INPUT}{error}", pb.TritonError.INVALID_ARG))
    if isinstance(error, Unavailable):
        return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.UNAVAILABLE))
    number = secrets.token_hex(4)
    pb.Logger.log_error(f"error {number}: {''.join(traceback.format_exception(error))}")
    reason = error if isinstance(error, FloatingPointError) else "see the server's log"
    return pb.InferenceResponse(error=pb.TritonError(f"internal error {number}: {reason}", pb.TritonError.INTERNAL))


def _error_of(message: str) -> Exception:
    """The error of a model that we asked; Triton 2.51 calls each of them INTERNAL, so the message has to tell."""
    if BAD_INPUT in message:
        return UserError(message.rpartition(BAD_INPUT)[2])
    return Unavailable(message) if any(sign in message for sign in NOT_NOW) else RuntimeError(message)
