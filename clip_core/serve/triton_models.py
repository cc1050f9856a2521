"""The models that Triton's Python backend runs; importable inside Triton only, where its utilities exist."""

import json
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # ty: ignore[import-not-found]

from clip_core.errors import UserError
from clip_core.image import pixels_of
from clip_core.inference.onnx_towers import open_session, run
from clip_core.model.contract import read_contract
from clip_core.serve.index import Index, read_index, top_k
from clip_core.serve.queries import BAD_INPUT
from clip_core.text import load_tokenizer

MAX_TEXT_BYTES = 16 * 2**10
MAX_IMAGE_BYTES = 16 * 2**20
MAX_IMAGE_PIXELS = 40_000_000
LENGTHS = (8, 16, 32)  # token_ids are padded to one of these, so that Triton's batcher finds equal shapes to join


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
        return np.stack(_each(items, self._read_image))  # (n, 3, image_size, image_size)

    def _read_image(self, item: bytes) -> np.ndarray:
        if len(item) > MAX_IMAGE_BYTES:
            raise UserError(f"the image has {len(item)} bytes; {MAX_IMAGE_BYTES} are allowed")
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
                features = run(self.session, batch)
                for place in places:
                    responses[place] = _answer({self.output.name: features[: len(arrays[place])]})
                    features = features[len(arrays[place]) :]
            except Exception as error:  # the edge, as above
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
        # One after the other: with async_exec, requests that come together wait half a second in Triton 2.51.
        return [self._one(request) for request in requests]

    def _one(self, request: "pb.InferenceRequest") -> "pb.InferenceResponse":
        question = pb.InferenceRequest(
            model_name=self.text_model,
            requested_output_names=["text_features", "release"],
            inputs=[pb.get_input_tensor_by_name(request, "TEXT")],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
        )
        answer = question.exec()
        if answer.has_error():
            return _pass_on(answer.error())
        try:
            release = pb.get_output_tensor_by_name(answer, "release").as_numpy()
            if encoder := {item.decode() for item in release.ravel()} - {self.release}:
                message = f"the index is of release {self.release}, the text model of {', '.join(encoder)}"
                return pb.InferenceResponse(error=pb.TritonError(message, pb.TritonError.UNAVAILABLE))
            features = pb.get_output_tensor_by_name(answer, "text_features").as_numpy()
            index = self._gallery(request)
            places, scores = top_k(index.features, features, self.top_k)
            ids = np.array([[index.image_ids[place].encode() for place in row] for row in places], dtype=object)
            return _answer({"ids": ids, "scores": scores, "release": release})
        except Exception as error:  # the edge, as above
            return _refusal(error)

    def _gallery(self, request: "pb.InferenceRequest") -> Index:
        """The index of the gallery that the request names; of the first if it names none."""
        tensor = pb.get_input_tensor_by_name(request, "GALLERY")
        named = set(tensor.as_numpy().ravel().tolist()) if tensor else {next(iter(self.galleries)).encode()}
        names = {item.decode(errors="replace") for item in named}
        if len(names) > 1 or not names <= self.galleries.keys():
            raise UserError(
                f"no gallery {', '.join(sorted(names))}: one of {', '.join(self.galleries)} is searched at a time"
            )
        return self.galleries[names.pop()]


def _check_numbers() -> None:
    """Sends numbers through the stub and back: Triton 2.51's gets them wrong under numpy 2 without a word."""
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = pb.Tensor.from_dlpack("got", pb.Tensor("sent", sent).to_dlpack()).as_numpy()
    assert np.array_equal(got, sent), f"Triton's Python stub computes wrong numbers under numpy {np.__version__}"


def _folder(args: dict[str, str]) -> Path:
    return Path(args["model_repository"], args["model_version"])


def _read_release(folder: Path) -> str:
    return (folder / "release.txt").read_text(encoding="utf-8").strip()


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
    """`read` of every item; its ValueError gets the item's place in the request."""
    results = []
    for place, item in enumerate(items):
        try:
            results.append(read(item))
        except ValueError as error:
            raise UserError(f"item {place}: {error}") from None
    return results


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
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in tensors.items()])


def _refusal(error: Exception) -> "pb.InferenceResponse":
    """What the caller of a request that failed gets: the reason if it is the caller's mistake, else no details."""
    if isinstance(error, ValueError):
        return pb.InferenceResponse(error=pb.TritonError(f"{BAD_INPUT}{error}", pb.TritonError.INVALID_ARG))
    pb.Logger.log_error("".join(traceback.format_exception(error)))
    return pb.InferenceResponse(error=pb.TritonError("internal error, see the server's log", pb.TritonError.INTERNAL))


def _pass_on(error: "pb.TritonError") -> "pb.InferenceResponse":
    """The error of a model that we asked; Triton 2.51 calls each of them INTERNAL, so the message has to tell."""
    code = pb.TritonError.INVALID_ARG if BAD_INPUT in error.message() else error.code()
    return pb.InferenceResponse(error=pb.TritonError(error.message(), code))
