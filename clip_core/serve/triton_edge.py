"""What every model of Triton's Python backend needs: its folder, its release, the answers, and questions to others."""

import re
import secrets
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb  # ty: ignore[import-not-found]

from clip_core.errors import UserError
from clip_core.serve.queries import ANOTHERS, BAD_INPUT, SHARES, in_requests

FEATURES = {"TEXT": ("clip_text", "text_features"), "IMAGE": ("clip_image", "image_features")}  # of a model's input
# What Triton 2.51 says of a model that is overloaded or not there; to a model that asks it, always as INTERNAL.
NOT_NOW = ("Exceeds maximum queue size", "Request timeout expired", "is not ready", "no available versions", ANOTHERS)


class Unavailable(Exception):
    """Not now, but perhaps a little later: a model that is asked is overloaded, not there, or of another release."""


def check_numbers() -> None:
    """Sends numbers through the stub and back: Triton 2.51's gets them wrong under numpy 2 without a word."""
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = pb.Tensor.from_dlpack("got", pb.Tensor("sent", sent).to_dlpack()).as_numpy()
    assert np.array_equal(got, sent), f"Triton's Python stub computes wrong numbers under numpy {np.__version__}"


def version_folder(args: dict[str, str]) -> Path:
    return Path(args["model_repository"], args["model_version"])


def read_release(folder: Path) -> str:
    return (folder / "release.txt").read_text(encoding="utf-8").strip()


def answer(tensors: dict[str, np.ndarray]) -> "pb.InferenceResponse":
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return refusal(FloatingPointError(f"{name}: not finite"))
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(array)) for name, array in tensors.items()])


def refusal(error: Exception) -> "pb.InferenceResponse":
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


def suffix_of(args: dict[str, str]) -> str:
    """What the names of a release's models end in: beside clip_search_<release> serves clip_text_<release>."""
    return re.sub("^clip_[a-z]+", "", args["model_name"])


def features_of(kind: str, items: Sequence[bytes], release: str, suffix: str) -> np.ndarray:
    """The features of texts (`kind` TEXT) or encoded pictures (IMAGE) by this release's own model, (n, embed_dim)."""
    model, output = FEATURES[kind]
    parts, start = [], 0
    for some in in_requests(items, SHARES[kind]):
        # Not async_exec: with it, requests that come together wait half a second in Triton 2.51.
        question = pb.InferenceRequest(
            model_name=f"{model}{suffix}",
            requested_output_names=[output, "release"],
            inputs=[pb.Tensor(kind, np.array(some, dtype=object).reshape(-1, 1))],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
        )
        answered = question.exec()
        if answered.has_error():
            raise error_of(answered.error().message(), start)
        behind = pb.get_output_tensor_by_name(answered, "release").as_numpy()
        if others := {item.decode() for item in behind.ravel()} - {release}:
            raise Unavailable(f"this model is of release {release}, {model} of {', '.join(others)}")
        parts.append(pb.get_output_tensor_by_name(answered, output).as_numpy())
        if not np.isfinite(parts[-1]).all():  # onnxruntime's own backend does not check
            raise FloatingPointError(f"{output}: not finite")
        start += len(some)
    return np.concatenate(parts)


def error_of(message: str, start: int) -> Exception:
    """The error of a model that was asked for the items from `start` on.

    Triton 2.51 calls each of them INTERNAL, so the message has to tell.
    """
    if BAD_INPUT in message:
        reason = message.rpartition(BAD_INPUT)[2]
        return UserError(re.sub(r"^item (\d+)", lambda item: f"item {start + int(item[1])}", reason))
    return Unavailable(message) if any(sign in message for sign in NOT_NOW) else RuntimeError(message)
