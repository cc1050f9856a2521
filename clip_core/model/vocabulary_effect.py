"""What fewer tokens do to a model: its size, and the features of given texts beside those of the full model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_core.model.clip import CLIP
from clip_core.text import Tokenizer

TEXTS_AT_ONCE = 256
NUM_COMPARED = 2000  # texts of each kind, evenly spread

Encoder = tuple[CLIP, Tokenizer]


@dataclass(frozen=True)
class Effect:
    """Sizes before and after, and what became of the texts."""

    tokens: tuple[int, int]
    parameters: tuple[int, int]
    bytes: tuple[int, int]  # of all tensors
    num_texts: int
    num_changed: int  # texts that are split otherwise than before
    num_equal: tuple[int, int]  # compared unchanged texts: with features equal to the bit, and all of them
    cosines: tuple[float, ...]  # of compared changed texts, with the full model

    def __str__(self) -> str:
        lines = [_saving(name, getattr(self, name)) for name in ("tokens", "parameters", "bytes")]
        if self.num_texts:
            share, (equal, compared) = self.num_changed / self.num_texts, self.num_equal
            lines.append(f"texts       {self.num_texts:,}, of which {share:.2%} are split otherwise")
            lines.append(f"unchanged   features equal to the bit in {equal:,} of {compared:,} compared")
        if self.cosines:
            found = np.array(self.cosines)
            lines.append(
                f"changed     cosine to the full model {found.mean():.4f} on average, {found.min():.4f} at least, "
                f"in {len(found):,} compared"
            )
        return "\n".join(lines)


def _saving(name: str, sizes: tuple[int, int]) -> str:
    before, after = sizes
    return f"{name:<11} {before:,} -> {after:,}: {before - after:,} saved ({(before - after) / before:.1%})"


def effect_on(texts: Sequence[str], full: Encoder, pruned: Encoder, rows: Sequence[int]) -> Effect:
    """The effect on distinct texts of keeping the tokens `rows` of the full model."""
    number = {old: new for new, old in enumerate(rows)}
    before, after = (token_ids_of(tokenizer, texts) for _, tokenizer in (full, pruned))
    is_same = [[number.get(token) for token in old] == new for old, new in zip(before, after, strict=True)]
    same = _spread([text for text, kept in zip(texts, is_same, strict=True) if kept])
    changed = _spread([text for text, kept in zip(texts, is_same, strict=True) if not kept])
    print(f"comparing the features of {len(same)} unchanged and {len(changed)} changed texts", flush=True)
    equal = sum(int((a == b).all(dim=1).sum()) for a, b in _side_by_side(full, pruned, same))
    turned = [(a * b).sum(dim=1) for a, b in _side_by_side(full, pruned, changed)]
    return Effect(
        tokens=(full[1].vocab_size, pruned[1].vocab_size),
        parameters=(_num_parameters(full[0]), _num_parameters(pruned[0])),
        bytes=(_num_bytes(full[0]), _num_bytes(pruned[0])),
        num_texts=len(texts),
        num_changed=is_same.count(False),
        num_equal=(equal, len(same)),
        cosines=tuple(torch.cat(turned).tolist()) if turned else (),
    )


def token_ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without padding."""
    batches = (tokenizer(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE))
    return [[token for token in row if token != 0] for batch in batches for row in batch.tolist()]


def _spread(texts: list[str]) -> list[str]:
    step = max(1, -(-len(texts) // NUM_COMPARED))
    return sorted(texts[::step], key=len)  # texts of like length: less padding


def _side_by_side(full: Encoder, pruned: Encoder, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """The features by both models, some texts at a time."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = texts[start : start + TEXTS_AT_ONCE]
        with torch.inference_mode():
            both = [model.encode_texts(torch.from_numpy(tokenizer(batch))) for model, tokenizer in (full, pruned)]
        yield both[0], both[1]


def _num_parameters(model: CLIP) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _num_bytes(model: CLIP) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())
