"""What the text tower starts from: a local BERT folder, or BERT's architecture with a random start."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from clip_core.files import sha256_file
from clip_core.model.contract import TextArchitecture
from clip_core.model.registry import Shape
from clip_core.model.text_tower import TextTower, architecture_of_bert, load_bert, with_positions
from clip_core.text import build_tokenizer, parse_tokenizer, tokenizer_of_vocabulary


@dataclass(frozen=True)
class TextStart:
    """A tokenizer, the architecture that goes with it, and the weights."""

    tokenizer_json: str
    architecture: TextArchitecture
    origin: str  # for model.json
    fill: Callable[[TextTower], None]  # puts the weights in; a random start leaves the tower as it was made


def text_start(shape: Shape, context_length: int, bert_folder: str | None, captions: Iterable[str]) -> TextStart:
    """The start that the params name; without a BERT folder the vocabulary is built from `captions`."""
    if bert_folder is not None:
        return _from_bert(Path(bert_folder), context_length)
    tokenizer_json = build_tokenizer(captions)
    vocab_size = parse_tokenizer(tokenizer_json, context_length).vocab_size
    options = with_positions(shape.text_tower, context_length)
    architecture = TextArchitecture(name=shape.text_tower.name, options=options, vocab_size=vocab_size)
    return TextStart(tokenizer_json, architecture, "random start", lambda tower: None)


def _from_bert(folder: Path, context_length: int) -> TextStart:
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        raise ValueError(f"init.bert_folder: {folder}: no BERT folder: it has no vocab.txt")
    tokenizer_json = tokenizer_of_vocabulary(vocabulary)
    vocab_size = parse_tokenizer(tokenizer_json, context_length).vocab_size
    architecture = architecture_of_bert(folder, vocab_size)
    limit = architecture.options["max_position_embeddings"]
    if isinstance(limit, int) and context_length > limit:
        raise ValueError(f"model.context_length is {context_length}, but the BERT in {folder} has {limit} positions")
    files = sorted(path for path in folder.iterdir() if path.name in ("model.safetensors", "pytorch_model.bin"))
    sums = [sha256_file(path)[:16] for path in files]
    return TextStart(tokenizer_json, architecture, f"BERT {' '.join(sums)}", lambda tower: load_bert(tower, folder))
