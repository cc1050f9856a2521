"""What becomes of texts and pictures on the way to a tower, and the tower on a CPU; importable inside Triton only."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # ty: ignore[import-not-found]

from clip_core.errors import UserError
from clip_core.image import decoded_size, pixels_of
from clip_core.inference.onnx_towers import open_session, run
from clip_core.model.contract import read_contract
from clip_core.serve.queries import MAX_IMAGES_BYTES, MAX_IMAGES_PIXELS, MAX_TEXTS_BYTES, lengths_of
from clip_core.serve.triton_edge import answer, check_numbers, read_release, refusal, version_folder
from clip_core.text import load_tokenizer

MAX_TEXT_BYTES = 16 * 2**10
MAX_IMAGE_BYTES = 16 * 2**20
MAX_IMAGE_PIXELS = 40_000_000


class TextPreprocess:
    """`TEXT` -> `token_ids` and `release`."""

    def initialize(self, args: dict[str, str]) -> None:
        check_numbers()
        folder = version_folder(args)
        contract = read_contract(folder)
        self.tokenizer = load_tokenizer(folder / contract.tokenizer, contract.context_length)
        self.lengths = lengths_of(contract.context_length)
        self.release = read_release(folder)

    def execute(self, requests: Sequence["pb.InferenceRequest"]) -> list["pb.InferenceResponse"]:
        return [_prepare(request, "TEXT", "token_ids", self._token_ids, self.release) for request in requests]

    def _token_ids(self, items: list[bytes]) -> np.ndarray:
        _check_sum("texts", "bytes", map(len, items), MAX_TEXTS_BYTES)
        rows = self.tokenizer(_each(items, _read_text))
        for place, row in enumerate(rows):
            if np.count_nonzero(row) <= self.tokenizer.num_ends:  # [CLS] and [SEP]: characters that mean nothing
                raise UserError(f"item {place}: the text is empty")
        length = next(length for length in self.lengths if length >= rows.shape[1])
        return np.pad(rows, ((0, 0), (0, length - rows.shape[1])))  # (n, length)


class ImagePreprocess:
    """`IMAGE` -> `pixels` and `release`."""

    def initialize(self, args: dict[str, str]) -> None:
        check_numbers()
        self.contract = read_contract(version_folder(args))
        self.release = read_release(version_folder(args))

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
        check_numbers()
        threads = json.loads(args["model_config"])["parameters"]["intra_op_thread_count"]["string_value"]
        self.session = open_session(version_folder(args) / "model.onnx", int(threads))
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
                    responses[place] = answer({self.output.name: features[: len(arrays[place])]})
                    features = features[len(arrays[place]) :]
            except Exception as error:  # the edge, as below
                for place in places:
                    responses[place] = refusal(error)
        return responses


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
        return answer({output: prepare(items), "release": releases})
    except Exception as error:  # the edge: whatever it is, the other requests get their answers
        return refusal(error)


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
