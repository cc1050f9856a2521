"""What the text tower starts from: a local BERT folder, or BERT's architecture with a random start."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from clip_core.config import Model
from clip_core.files import sha256_file
from clip_core.model.contract import TextArchitecture
from clip_core.model.text_tower import BertTextTower, architecture_of_bert, load_bert
from clip_core.text import build_tokenizer, parse_tokenizer, tokenizer_of_vocabulary


@dataclass(frozen=True)
class TextStart:
    """A tokenizer, the architecture that goes with it, and the weights."""

    tokenizer_json: str
    architecture: TextArchitecture
    origin: str  # for model.json
    fill: Callable[[BertTextTower], None]  # puts the weights in; a random start leaves the tower as it was made


def text_start(model: Model, bert_folder: str | None, captions: Iterable[str]) -> TextStart:
    """The start that the params name; without a BERT folder the vocabulary is built from `captions`."""
    if bert_folder is not None:
        return _from_bert(Path(bert_folder), model.context_length)
    tokenizer_json = build_tokenizer(captions)
    vocab_size = parse_tokenizer(tokenizer_json, model.context_length).vocab_size
    sizes = model.text_tower.model_dump()
    architecture = TextArchitecture(**sizes, vocab_size=vocab_size, num_positions=model.context_length)
    return TextStart(tokenizer_json, architecture, "random start", lambda tower: None)


def _from_bert(folder: Path, context_length: int) -> TextStart:
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        raise ValueError(f"init.bert_folder: {folder} is no BERT folder: it has no vocab.txt")
    tokenizer_json = tokenizer_of_vocabulary(vocabulary)
    vocab_size = parse_tokenizer(tokenizer_json, context_length).vocab_size
    architecture = architecture_of_bert(folder, vocab_size)
    if context_length > architecture.num_positions:
        limit = architecture.num_positions
        raise ValueError(f"model.context_length is {context_length}, but the BERT in {folder} has {limit} positions")
    files = sorted(path for path in folder.iterdir() if path.name in ("model.safetensors", "pytorch_model.bin"))
    sums = [sha256_file(path)[:16] for path in files]
    return TextStart(tokenizer_json, architecture, f"BERT {' '.join(sums)}", lambda tower: load_bert(tower, folder))
