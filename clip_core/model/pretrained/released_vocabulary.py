"""The vocabulary of released Chinese-CLIP weights, which their files come without."""

import hashlib
import importlib.util
import json
import tempfile
from pathlib import Path

from clip_core.errors import UserError
from clip_core.model.registry import VOCABULARY
from clip_core.text import tokenizer_of_vocabulary

VOCABULARY_SHA256 = "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"  # Google's Chinese BERT's


def is_released(vocabulary: Path) -> bool:
    """Whether the file is, byte for byte, the vocabulary of the released weights."""
    return hashlib.sha256(vocabulary.read_bytes()).hexdigest() == VOCABULARY_SHA256


def is_released_text(text: str) -> bool:
    """Whether this is the content of the released vocabulary."""
    return hashlib.sha256(text.encode()).hexdigest() == VOCABULARY_SHA256


def find_vocabulary(source: Path, given: Path | None, vocab_size: int) -> Path:
    """The vocabulary for the `vocab_size` tokens of `source`: the given file, the one beside, or cn_clip's.

    Raises UserError when there is none, or when it is not the one that the weights were trained with.
    """
    beside = source if source.is_dir() else source.parent
    candidates = [given] if given else [beside / "vocab.txt", *_in_cn_clip()]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        if given:
            raise UserError(f"--vocab {given}: no such file")
        raise UserError(
            "it comes without a vocabulary, there is no vocab.txt beside it, and cn_clip is not installed; "
            "give the vocab.txt of Chinese-CLIP (or of any Chinese BERT of Google or HFL) with --vocab FILE"
        )
    if vocab_size == VOCABULARY and not is_released(found):
        raise UserError(
            f"{found}: not the vocabulary that the weights were trained with: sha256 "
            f"{hashlib.sha256(found.read_bytes()).hexdigest()}, wanted {VOCABULARY_SHA256}; "
            "give Chinese-CLIP's own vocab.txt with --vocab FILE"
        )
    return found


def vocabulary_of(tokenizer_json: str) -> str:
    """The vocab.txt that says the same as this tokenizer.json; raises UserError when a vocabulary can not say it."""
    tokenizer = json.loads(tokenizer_json)
    numbers: dict[str, int] = tokenizer["model"]["vocab"]
    text = "".join(f"{token}\n" for token in sorted(numbers, key=numbers.__getitem__))
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text(text, encoding="utf-8")
        if json.loads(tokenizer_of_vocabulary(vocabulary)) != tokenizer:
            raise UserError("its tokenizer is not BERT's (it prepares texts or splits words in another way)")
    return text


def _in_cn_clip() -> list[Path]:
    """Where an installed cn_clip has it; looked up without importing it."""
    spec = importlib.util.find_spec("cn_clip")
    places = None if spec is None else spec.submodule_search_locations
    return [Path(place) / "clip" / "vocab.txt" for place in places or ()]
