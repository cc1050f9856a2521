"""The exported towers on the CPU, through onnxruntime."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip_core.errors import UserError
from clip_core.image import pixels_of
from clip_core.model.contract import Contract, read_contract
from clip_core.text import load_tokenizer

if TYPE_CHECKING:
    import onnxruntime

    from clip_core.data.store import Store

AT_ONCE = 64  # texts or pictures in one run of a tower
NUM_THREADS = 2


def open_session(file: Path, num_threads: int = NUM_THREADS) -> "onnxruntime.InferenceSession":
    """The ONNX file ready to run; idle threads sleep, since the cores are shared."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(session: "onnxruntime.InferenceSession", rows: np.ndarray) -> np.ndarray:
    """The features of `rows`, which the tower takes as its only input."""
    (features,) = session.run(None, {session.get_inputs()[0].name: rows})
    return np.asarray(features)


def encode_texts(onnx: Path, texts: Sequence[str]) -> np.ndarray:
    """The texts as float32 (n, embed_dim), L2-normalised, by the export in the folder `onnx`."""
    contract = read_contract(onnx)
    tokenizer = load_tokenizer(onnx / contract.tokenizer, contract.context_length)
    session = open_session(onnx / "text.onnx")
    parts = [run(session, tokenizer(texts[start : start + AT_ONCE])) for start in range(0, len(texts), AT_ONCE)]
    return np.concatenate(parts)


def encode_store(onnx: Path, store: "Store") -> np.ndarray:
    """All pictures of the store, in its order, as float32 (n, embed_dim), L2-normalised."""
    session = open_session(onnx / "image.onnx")
    return np.concatenate([run(session, pixels) for pixels in pixels_of_store(store, read_contract(onnx))])


def pixels_of_store(store: "Store", contract: Contract) -> Iterator[np.ndarray]:
    """The store's pictures as the image tower takes them, some at a time; prints how far it is."""
    for start in range(0, len(store), AT_ONCE):
        stop = min(start + AT_ONCE, len(store))
        yield np.stack([_pixels(store, i, contract) for i in range(start, stop)])
        if stop % (16 * AT_ONCE) == 0 or stop == len(store):
            print(f"  {stop} of {len(store)} pictures encoded", flush=True)


def _pixels(store: "Store", row: int, contract: Contract) -> np.ndarray:
    try:
        return pixels_of(store.image_bytes(row), contract.image_size, contract.preprocessing)
    except ValueError as error:
        raise UserError(f"picture {store.image_ids[row]}: {error}") from None
