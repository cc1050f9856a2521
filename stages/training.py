"""What the stages `stage1` and `stage2` have in common: all but what trains."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from clip_core.config import TrainingStage
from clip_core.data.batches import Pairs, Pictures, decoded
from clip_core.data.store import open_store
from clip_core.evaluate.retrieval import quick_recall
from clip_core.inference.predictor import Predictor
from clip_core.inference.torch_towers import TorchTowers
from clip_core.model.clip import CLIP
from clip_core.model.contract import Made, hash_of, read_contract, release_of
from clip_core.model.weights import load_weights, save_weights
from clip_core.text import load_tokenizer
from clip_core.train.backward import Encode, settled
from clip_core.train.checkpoint import fingerprint, work_folder
from clip_core.train.log import publish_curves
from clip_core.train.loop import Validation, check_batches, train
from clip_core.train.lora import merge_adapters

# What a training sees of each picture, and how that becomes image features.
Seen = Callable[[CLIP, Pictures, int], tuple[Pictures, Encode]]


def train_stage(
    name: str, params: TrainingStage, seed: int, seen: Seen, packed: Path, start: Path, out: Path, curves: Path
) -> None:
    """Trains the weights in `start` on the pairs in `packed`; the new ones go to `out`, the curves to `curves`."""
    params = settled(params)
    store, benchmark = open_store(packed / "train"), open_store(packed / "valid")
    check_batches({name: params}, store.pairs)
    contract, parent = read_contract(start), release_of(start)
    tokenizer = load_tokenizer(start / contract.tokenizer, contract.context_length)

    def recall(model: CLIP) -> dict[str, float]:
        predictor = Predictor(TorchTowers(model), tokenizer, contract, release="in training")
        return quick_recall(
            predictor.encode_texts, predictor.encode_images, benchmark, contract.architecture.matryoshka
        )

    data, validation = hash_of(store.manifest), Validation(params.evaluate_every, recall)
    with work_folder(name, fingerprint(params, seed, data, benchmark.manifest, parent)) as work:
        model = load_weights(start)
        is_passed_through = params.schedule.num_steps == 0
        pictures = _none if is_passed_through else decoded(store, contract.image_size, contract.preprocessing)
        images, encode_images = seen(model, pictures, len(store))
        pairs = Pairs(store, images, tokenizer, params, seed)
        train(params, model, pairs, work, encode_images, validation)
        if tokenizer.num_truncated:
            print(f"{tokenizer.num_truncated:,} texts were cut off at {contract.context_length} tokens", flush=True)
        merge_adapters(model)
        made = Made(
            stage=name, params=hash_of(params, seed), data=data, parent=parent, text_tower=contract.made.text_tower
        )
        save_weights(model, (start / contract.tokenizer).read_text(encoding="utf-8"), out, made)
        publish_curves(work, curves)


def _none(rows: np.ndarray) -> Tensor:
    raise AssertionError(f"nothing trains, so nobody asks for pictures {rows}")
