"""Tiny real objects for the unit tests: a store of drawn pictures with Chinese and English names, a model, params."""

import io
from pathlib import Path

import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import nn

from clip_core.config.intervals import Interval
from clip_core.config.model import ImageTower
from clip_core.config.training import (
    AffineAugmentation,
    CaptionMix,
    Captions,
    Loss,
    LrShares,
    Optimizer,
    Schedule,
    Torch,
    Training,
)
from clip_core.data.captions import texts_of
from clip_core.data.store import Store, StoreWriter, open_store
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.contract import Architecture, Made, TextArchitecture
from clip_core.text import build_tokenizer, parse_tokenizer
from clip_core.train.average import Average
from clip_core.train.state import Saver

COLOURS = {"红色": "red", "绿色": "green", "蓝色": "blue", "黄色": "yellow", "黑色": "black", "紫色": "purple"}
SHAPES = {"圆形": "circle", "方块": "square"}
STYLES = ("a", "b", "c")
CHINESE = Captions(
    language="zh",
    templates=("{}", "一张{}的图片"),
    mix=CaptionMix(templated_name=0.4, keywords=0.2, name_and_keywords=0.2, group_and_name=0.2),
)
ENGLISH = Captions(
    language="en",
    templates=("{}", "a picture of {}"),
    mix=CaptionMix(templated_name=0.5, keywords=0.25, name_and_keywords=0.25, group_and_name=0.0),
)
MADE = Made(stage="init", params="0", data="0", parent=None, text_tower="random start")
IMAGE_SIZE = 32
INTERVAL = Interval(log_every=2, save_every=5)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def picture(colour: str, shape: str, style: str) -> bytes:
    """One drawing; the style decides its size."""
    image = Image.new("RGB", (40, 40), "white")
    inset = 4 + 3 * STYLES.index(style)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "circle" else draw.rectangle)((inset, inset, 40 - inset, 40 - inset), fill=colour)
    return encoded(image)


def tiny_store(folder: Path) -> Store:
    """A packed split of 12 concepts in three styles."""
    pictures, rows = {}, []
    for chinese_colour, colour in COLOURS.items():
        for chinese_shape, shape in SHAPES.items():
            for style in STYLES:
                image_id = f"{style}-{colour}-{shape}"
                pictures[image_id] = picture(colour, shape, style)
                captions = [
                    ("zh", "name", f"{chinese_colour}{chinese_shape}"),
                    ("zh", "keyword", chinese_colour),
                    ("zh", "keyword", chinese_shape),
                    ("en", "name", f"{colour} {shape}"),
                    ("en", "keyword", colour),
                ]
                rows += [
                    {
                        "pair_id": f"{image_id}/{language}-{kind}-{i}",
                        "image_id": image_id,
                        "text_id": f"{language}-{kind}-{caption}",
                        "caption": caption,
                        "language": language,
                        "caption_kind": kind,
                        "concept_id": f"{colour}-{shape}",
                        "family": colour,
                        "group": "图形",
                        "split": "train",
                        "source": "test",
                        "licence": "CC0-1.0",
                        "image_sha256": "",
                        "width": 40,
                        "height": 40,
                        "num_bytes": 1,
                        "seen": True,
                    }
                    for i, (language, kind, caption) in enumerate(captions)
                ]
    writer = StoreWriter(folder, 2**20)
    for image_id in sorted(pictures):
        writer.add(image_id, pictures[image_id])
    sums = dict(zip(writer.image_ids, writer.sums, strict=True))
    pairs = pd.DataFrame(rows)
    pairs["image_sha256"] = pairs["image_id"].map(sums)
    writer.finish(pairs)
    return open_store(folder)


def tiny_tokenizer_json(store: Store, captions: Captions = CHINESE) -> str:
    return build_tokenizer(texts_of(store.pairs, captions))


def tiny_architecture(tokenizer_json: str, dropout: float = 0.1) -> Architecture:
    return Architecture(
        image_tower=ImageTower(name="resnet10t", options={"channels": (8, 8, 16, 16), "stem_width": 8}),
        text_tower=TextArchitecture(
            name="bert",
            options={
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "hidden_dropout_prob": dropout,
                "attention_probs_dropout_prob": dropout,
                "max_position_embeddings": 16,
            },
            vocab_size=parse_tokenizer(tokenizer_json, 16).vocab_size,
        ),
        embed_dim=8,
        image_size=IMAGE_SIZE,
        context_length=16,
        preprocessing=Preprocessing(),
        matryoshka=(),
    )


def tiny_clip(tokenizer_json: str | None = None, seed: int = 1) -> CLIP:
    return make_clip(tiny_architecture(tokenizer_json or build_tokenizer(["一只猫", "ok"])), seed)


def saved(work: Path, step: int, num_steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes a checkpoint and waits for it."""
    with Saver(work, num_steps, model, optimizer, Average(model, None)) as save:
        save(step)


def tiny_training(num_steps: int = 12, captions: Captions = CHINESE) -> Training:
    return Training(
        schedule=Schedule(num_steps=num_steps, num_epochs=None, warmup_steps=2, peak_lr=0.01),
        optimizer=Optimizer(
            beta1=0.9,
            beta2=0.98,
            eps=1e-6,
            weight_decay=0.05,
            max_grad_norm=1.0,
            lr_shares=LrShares(image_tower=1.0, text_tower=1.0, projections=1.0),
            layer_decay=1.0,
        ),
        loss=Loss(name="contrastive", positives="pair"),
        keep="last",
        max_skipped_steps=0,
        global_batch=8,
        micro_batch=None,
        ema_decay=None,
        precision="fp32",
        torch=Torch(tf32=False, compile=False, deterministic=True),
        checkpoint_activations=False,
        decoding="exact",
        augmentation=AffineAugmentation(name="affine", scale=0.1, rotate=10.0, shift=0.1, brightness=0.1),
        captions=captions,
    )
