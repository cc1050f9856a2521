"""A tiny model with random weights, a tiny gallery, and what serving makes of them: enough for every serving test."""

import hashlib
import io
from pathlib import Path

from PIL import Image, ImageDraw

from clip_core.config import Deploy, Export, ImageTower
from clip_core.data.store import Store, StoreWriter, open_store

EXPORT = Export(opset=20, max_feature_difference=1e-4, tie_margin=2e-4)
DEPLOY = Deploy(num_golden=4, num_timed=5, max_feature_difference=1e-4)
COLOURS = {"红": "#d32f2f", "橙": "#f57c00", "黄": "#fbc02d", "绿": "#388e3c", "蓝": "#1976d2", "紫": "#7b1fa2"}
SHAPES = {"圆形": "ellipse", "方形": "rectangle", "弧线": "chord", "扇形": "pieslice"}
TOP_K = 10


def names() -> list[str]:
    """The captions of the gallery's pictures."""
    return [f"{colour}色的{shape}" for colour in COLOURS for shape in SHAPES]


def picture(colour: str, shape: str, encoding: str = "PNG") -> bytes:
    """A coloured shape on white, encoded."""
    image = Image.new("RGB", (40, 40), "white")
    draw, box, fill = ImageDraw.Draw(image), (6, 6, 34, 34), COLOURS[colour]
    turn = {"chord": {"start": 0, "end": 200}, "pieslice": {"start": 30, "end": 300}}.get(SHAPES[shape], {})
    getattr(draw, SHAPES[shape])(box, fill=fill, **turn)
    buffer = io.BytesIO()
    image.save(buffer, encoding)
    return buffer.getvalue()


def make_model(folder: Path, seed: int) -> Path:
    """A weights folder with random weights, which are a function of `seed`."""
    import tokenizers

    from clip_core.model.clip import make_clip
    from clip_core.model.contract import Architecture, Made, Preprocessing, TextArchitecture
    from clip_core.model.weights import save_weights
    from clip_core.text import build_tokenizer

    tokenizer = build_tokenizer(names())
    text_tower = TextArchitecture(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        dropout=0.0,
        vocab_size=tokenizers.Tokenizer.from_str(tokenizer).get_vocab_size(),
        num_positions=32,
    )
    image_tower = ImageTower(name="resnet10t", options={"channels": (16, 16, 32, 32), "stem_width": 8})
    architecture = Architecture(
        image_tower=image_tower,
        text_tower=text_tower,
        embed_dim=24,
        image_size=32,
        context_length=20,
        preprocessing=Preprocessing(),
    )
    made = Made(stage="stage2", params="tiny", data="tiny", parent=None, text_tower="random")
    save_weights(make_clip(architecture, seed).eval(), tokenizer, folder, made)
    return folder


def make_store(folder: Path) -> Store:
    """A packed split of 24 drawn pictures with their names."""
    import pandas as pd

    writer = StoreWriter(folder, shard_bytes=2**20)
    rows = []
    for place, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
        image = picture(colour, shape)
        writer.add(f"drawn-{place:02d}", image)
        rows.append(
            {
                "pair_id": f"pair-{place:02d}",
                "image_id": f"drawn-{place:02d}",
                "text_id": f"zh-{place:02d}",
                "caption": f"{colour}色的{shape}",
                "language": "zh",
                "caption_kind": "caption",
                "concept_id": None,
                "family": None,
                "group": None,
                "split": "test",
                "source": "drawn",
                "licence": "CC0-1.0",
                "image_sha256": hashlib.sha256(image).hexdigest(),
                "width": 40,
                "height": 40,
                "num_bytes": len(image),
                "seen": True,
            }
        )
    writer.finish(pd.DataFrame(rows))
    return open_store(folder)
