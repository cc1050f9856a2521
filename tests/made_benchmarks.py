"""Benchmarks in the exact layouts of the reference, as small or as large as one likes, and tiny models for them."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_core.model.weights import save_weights
from clip_core.text import build_tokenizer
from tests.small_raw import drawing, encoded
from tests.tiny import MADE, tiny_clip

Texts = Mapping[int, tuple[str, Sequence[int]]]  # text_id -> the text and the pictures that it names


def write_retrieval(folder: Path, name: str, texts: Texts, pictures: Mapping[int, bytes]) -> Path:
    """`{name}_imgs.tsv` and `{name}_texts.jsonl`, with ids that are numbers, as the reference's README has them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"text_id": text_id, "text": text, "image_ids": list(image_ids)}, ensure_ascii=False)
        for text_id, (text, image_ids) in texts.items()
    ]
    (folder / f"{name}_texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [f"{image_id}\t{base64.urlsafe_b64encode(image).decode()}\n" for image_id, image in pictures.items()]
    (folder / f"{name}_imgs.tsv").write_text("".join(rows), encoding="utf-8")
    return folder


def write_classes(folder: Path, names: Sequence[str], pictures: Sequence[Sequence[bytes]], inner: str = "test") -> Path:
    """`label_cn.txt`, `label.txt`, `index.json` and `test/000/...`: ids are filled up to three digits above ten."""
    digits = 3 if len(names) > 10 else 1
    for i, some in enumerate(pictures):
        place = folder / inner / f"{i:0{digits}d}"
        place.mkdir(parents=True)
        for number, picture in enumerate(some):
            (place / f"{i}-{number}.PNG").write_bytes(picture)
    num = sum(map(len, pictures))
    (folder / "label_cn.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "label.txt").write_text("\n".join(f"class {i}" for i in range(len(names))) + "\n", encoding="utf-8")
    (folder / "index.json").write_text(json.dumps(list(range(num))[::-1]), encoding="utf-8")
    return folder


def pictures(first: int, num: int) -> list[bytes]:
    """Pictures unlike any other."""
    return [encoded(drawing(first + i)) for i in range(num)]


def write_model(folder: Path, seed: int = 1) -> Path:
    """A weights folder of a tiny model that nobody trained."""
    tokenizer = build_tokenizer(["一只小猫和一张红色苹果的照片", "ok"])
    save_weights(tiny_clip(tokenizer, seed), tokenizer, folder, MADE)
    return folder
