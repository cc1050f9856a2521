"""What the text tower starts from: a local BERT folder, or BERT's architecture with a random start.

The stage `text_start` writes it into a folder, which `init` reads.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_core.config.model import Options
from clip_core.config.section import Section, hash_of
from clip_core.errors import UserError
from clip_core.files import atomic_write, replacing_folder, sha256_file
from clip_core.model.clip import CLIP
from clip_core.model.contract import TOKENIZER_FILE, WEIGHTS_FILE, TextArchitecture
from clip_core.model.pretrained.checkpoint import Checkpoint, read_checkpoint, read_json
from clip_core.model.registry import Shape
from clip_core.model.text_tower import TextTower, with_positions
from clip_core.model.weights import differing
from clip_core.text import build_tokenizer, parse_tokenizer, tokenizer_of_vocabulary

# Of what BERT was trained with, and of older versions of transformers.
UNUSED_OF_BERT = re.compile(r"(bert\.)?pooler\..+|cls\..+|(bert\.)?embeddings\.position_ids")
RANDOM_START, TAUGHT = MADE_HERE = "random start", "taught"  # how the origin of what began here begins
ABOUT = "text_start.json"
EPS = 1e-12  # of BERT's LayerNorm where its config does not say


@dataclass(frozen=True)
class TextStart:
    """A tokenizer, the architecture that goes with it, and the weights."""

    tokenizer_json: str
    architecture: TextArchitecture
    origin: str  # for model.json
    fill: Callable[[TextTower], None]  # puts the weights in; a random start leaves the tower as it was made


class Written(Section):
    """What the folder says of itself."""

    origin: str
    architecture: TextArchitecture


@dataclass(frozen=True)
class Folder:
    """The stage's result."""

    about: Written
    tokenizer_json: str
    tensors: dict[str, Tensor]  # of the text side, under a CLIP's names; what is not there starts at random
    sum: str  # of all its bytes

    def give(self, model: CLIP) -> None:
        """Puts the tensors into the model."""
        assert not model.load_state_dict(self.tensors, strict=False).unexpected_keys


def write_text_start(folder: Path, about: Written, tokenizer_json: str, tensors: dict[str, Tensor]) -> None:
    """Writes the folder, whole or not at all; the same start gives the same bytes."""
    with replacing_folder(folder) as aside:
        atomic_write(aside / ABOUT, about.model_dump_json(indent=2) + "\n")
        atomic_write(aside / TOKENIZER_FILE, tokenizer_json)
        save_file(tensors, aside / WEIGHTS_FILE)


def read_text_start(folder: Path) -> Folder:
    about = Written.model_validate_json((folder / ABOUT).read_text(encoding="utf-8"))
    tokenizer_json = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    sums = [sha256_file(folder / name) for name in (ABOUT, TOKENIZER_FILE, WEIGHTS_FILE)]
    return Folder(about, tokenizer_json, load_file(folder / WEIGHTS_FILE), hash_of(sums))


def text_start(shape: Shape, context_length: int, bert_folder: str | None, captions: Iterable[str]) -> TextStart:
    """The start that the params name; without a BERT folder the vocabulary is built from `captions`."""
    if bert_folder is not None:
        return _from_bert(Path(bert_folder), context_length)
    tokenizer_json = build_tokenizer(captions)
    vocab_size = parse_tokenizer(tokenizer_json, context_length).vocab_size
    options = with_positions(shape.text_tower, context_length)
    architecture = TextArchitecture(name=shape.text_tower.name, options=options, vocab_size=vocab_size)
    return TextStart(tokenizer_json, architecture, RANDOM_START, lambda tower: None)


def _from_bert(folder: Path, context_length: int) -> TextStart:
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        raise UserError(f"{folder}: no BERT folder: it has no vocab.txt")
    tokenizer_json = tokenizer_of_vocabulary(vocabulary)
    vocab_size = parse_tokenizer(tokenizer_json, context_length).vocab_size
    architecture = architecture_of_bert(folder, vocab_size)
    limit = architecture.options["max_position_embeddings"]
    if isinstance(limit, int) and context_length > limit:
        raise UserError(f"model.context_length is {context_length}, but the BERT in {folder} has {limit} positions")
    checkpoint = read_checkpoint(folder)
    sums = [sha256_file(path)[:16] for path in sorted(checkpoint.files)]
    origin = f"BERT {' '.join(sums)}"
    return TextStart(tokenizer_json, architecture, origin, lambda tower: load_bert(tower, checkpoint))


def architecture_of_bert(folder: Path, vocab_size: int) -> TextArchitecture:
    """The architecture that the config.json of a Hugging Face BERT folder describes."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: not a BERT folder: it has no config.json")
    config = read_json(path)
    kind = config.get("model_type", "bert")  # the oldest configs do not say
    if kind != "bert":
        raise UserError(f"{path}: model_type is {kind!r}, and only 'bert' can be read: its kin compute otherwise")
    for name, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(name, known) != known:
            raise UserError(f"{path}: {name} is {config[name]!r}; only BERT's own {known!r} is supported")
    try:
        width = config["vocab_size"]
        options: Options = {
            name: config[name]
            for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        }
    except KeyError as error:
        raise UserError(f"{path}: not the config of a BERT: {error!r}") from None
    if width != vocab_size:
        raise UserError(f"{path}: vocab_size is {width}, but vocab.txt has {vocab_size} tokens")
    options["max_position_embeddings"] = config.get("max_position_embeddings", 512)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        options[name] = float(config.get(name, 0.1))
    if (eps := config.get("layer_norm_eps", EPS)) != EPS:
        options["layer_norm_eps"] = eps
    return TextArchitecture(name="bert", options=options, vocab_size=width)


def load_bert(tower: TextTower, checkpoint: Checkpoint) -> None:
    """Fills the tower with the weights of a BERT; raises UserError that names all that does not fit."""
    used = {name: tensor for name, tensor in checkpoint.tensors.items() if not UNUSED_OF_BERT.fullmatch(name)}
    found = {_our_name(name): tensor for name, tensor in used.items()}
    wanted = {name: tensor.shape for name, tensor in tower.encoder.state_dict().items()}
    if differences := differing(wanted, {name: tensor.shape for name, tensor in found.items()}):
        raise UserError(f"{checkpoint.source}: not the weights that its config.json describes:\n{differences}")
    if len(found) < len(used):
        raise UserError(f"{checkpoint.source}: holds some tensors twice, with and without the prefix bert.")
    tower.encoder.load_state_dict(found)


def _our_name(name: str) -> str:
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
