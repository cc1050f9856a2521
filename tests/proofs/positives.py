"""What pairs of one caption are to each other: negatives, left out, or right as well; accuracy over five seeds.

Class-like data: IconPark's icons with their category as caption, 39 captions in 4,000 pairs. Asked are icons that no
training picture shows; the answer is the category whose caption is nearest.
"""

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clip_core.config.training import Loss
from clip_core.data.batches import TrainingBatches
from clip_core.data.captions import texts_of_store
from clip_core.data.pictures import Kept, decoded
from clip_core.data.store import Store, StoreWriter, open_store
from clip_core.evaluate.ablation import over_seeds
from clip_core.image import Preprocessing
from clip_core.model.clip import make_clip
from clip_core.model.costs import architecture_of
from clip_core.text import build_tokenizer, parse_tokenizer
from clip_core.train import backward
from clip_core.train.loop import train
from tests.tiny import INTERVAL, tiny_training

CACHE = Path(".cache/iconpark")
NUM_PAIRS, NUM_ASKED, NUM_STEPS, SEEDS, SIDE = 4000, 2000, 250, (1, 2, 3, 4, 5), 48
ARMS = {"negatives": "pair", "left out": "caption", "right as well": "caption"}


def prove() -> dict:
    """Each arm's accuracy, and what is gained over taking pairs of the same caption as negatives (paired t, 95 %)."""
    with tempfile.TemporaryDirectory() as scratch:
        trained, asked = stores(Path(scratch))
        accuracy = {arm: [measured(arm, trained, asked, seed) for seed in SEEDS] for arm in ARMS}
    gains = {
        arm: over_seeds(np.array(accuracy[arm]) - np.array(accuracy["negatives"]), 0.95)
        for arm in ("left out", "right as well")
    }
    gains["left out, over right as well"] = over_seeds(
        np.array(accuracy["left out"]) - np.array(accuracy["right as well"]), 0.95
    )
    asked_of = {"pairs": NUM_PAIRS, "captions": 39, "asked": NUM_ASKED, "steps": NUM_STEPS, "batch": 128}
    return {**asked_of, "seeds": SEEDS, "accuracy": accuracy, "gains": gains}


def stores(folder: Path) -> tuple[Store, Store]:
    """Icons to train on and to ask for; all drawings of an icon are in one of them."""
    icons = pd.read_parquet(CACHE / "concepts.parquet", columns=["name", "group"])
    pictures = pd.read_parquet(CACHE / "pictures.parquet").merge(icons, on="name")
    order = np.random.default_rng(0).permutation(icons["name"].to_numpy())
    pictures["place"] = pictures["name"].map({name: place for place, name in enumerate(order)})
    pictures = pictures.sort_values(["place", "artwork"], kind="stable")
    parts = {"train": pictures[:NUM_PAIRS], "test": pictures[-NUM_ASKED:]}
    assert not set(parts["train"]["name"]) & set(parts["test"]["name"])
    found = (packed(part, folder / name) for name, part in parts.items())
    return next(found), next(found)


def packed(pictures: pd.DataFrame, folder: Path) -> Store:
    rows = pd.DataFrame(
        {
            "image_id": pictures["artwork"] + "/" + pictures["name"],
            "caption": pictures["group"],
            "language": "zh",
            "caption_kind": "caption",
            "concept_id": None,
            "group": None,
            "family": pictures["name"],
            "split": folder.name,
            "source": "iconpark",
            "licence": "Apache-2.0",
            "width": SIDE,
            "height": SIDE,
            "num_bytes": pictures["image"].map(len),
            "seen": True,
            "image": pictures["image"],
        }
    ).sort_values("image_id")
    rows["pair_id"] = rows["text_id"] = rows["image_id"]
    writer = StoreWriter(folder, 2**28)
    for image_id, image in zip(rows["image_id"], rows["image"], strict=True):
        writer.add(image_id, image)
    sums = dict(zip(writer.image_ids, writer.sums, strict=True))
    rows = rows.drop(columns="image").assign(image_sha256=rows["image_id"].map(sums))
    writer.finish(rows)
    return open_store(folder)


def measured(arm: str, trained: Store, asked: Store, seed: int) -> float:
    """The share of the asked icons whose category is nearest, after a training from scratch."""
    params = tiny_training(num_steps=NUM_STEPS)
    loss = Loss(name="contrastive", positives=ARMS[arm])  # ty: ignore[invalid-argument-type]
    schedule = params.schedule.model_copy(update={"peak_lr": 0.002, "warmup_steps": 20})
    params = params.model_copy(update={"loss": loss, "schedule": schedule, "global_batch": 128})
    tokenizer_json = build_tokenizer(texts_of_store(trained, params.captions))
    tokenizer = parse_tokenizer(tokenizer_json, 16)
    architecture = architecture_of("tiny")
    text_tower = architecture.text_tower.model_copy(update={"vocab_size": tokenizer.vocab_size})
    model = make_clip(architecture.model_copy(update={"text_tower": text_tower, "context_length": 16}), seed)
    pictures, candidates = (decoded(store, SIDE, Preprocessing()) for store in (trained, asked))
    instead = right_as_well if arm == "right as well" else backward.nested_loss
    with (
        tempfile.TemporaryDirectory() as work,
        patch.object(backward, "nested_loss", instead),
        TrainingBatches(trained, pictures, tokenizer, params, seed) as batches,
    ):
        train(batches, model, model.encode_images, Path(work), INTERVAL)
    captions = sorted(set(trained.pairs["caption"]))
    assert isinstance(candidates, Kept)
    with torch.inference_mode():
        texts = model.encode_texts(torch.from_numpy(tokenizer(captions)))
        found = (model.encode_images(candidates.rows) @ texts.T).argmax(1).numpy()
    right = asked.pairs.sort_values("image_id")["caption"].to_numpy()
    return float(np.mean(np.array(captions)[found] == right))


def right_as_well(_name: str, images: Tensor, texts: Tensor, scale: Tensor, *rest: object) -> Tensor:
    """The other choice: all pairs of a kind share the target, as in supervised contrastive learning."""
    kinds = rest[-1] if isinstance(rest[-1], Tensor) else torch.arange(len(images))
    logits, same = scale.exp() * images @ texts.T, (kinds[:, None] == kinds).float()
    target = same / same.sum(1, keepdim=True)
    return -((target * logits.log_softmax(1)).sum(1) + (target * logits.T.log_softmax(1)).sum(1)).mean() / 2
