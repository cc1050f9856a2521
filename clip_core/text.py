"""The tokenizer: one path from text to `token_ids` for training, evaluation, export and serving."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

PAD, UNKNOWN, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
MAX_WORDS = 30_000  # the rarest words of larger captions are spelt in characters
MAX_WORD_LETTERS = 200  # longer words become [UNK], as in Chinese-CLIP


class Tokenizer:
    """Makes `token_ids` of texts; counts the texts that were too long in `num_truncated`."""

    def __init__(self, backend: tokenizers.Tokenizer, context_length: int) -> None:
        backend.enable_truncation(context_length)
        backend.enable_padding(pad_id=0, pad_token=PAD)
        self._backend = backend
        self.context_length = context_length
        self.vocab_size = backend.get_vocab_size()
        self.num_truncated = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The texts as int64 (n, longest): [CLS] .. [SEP], padded with 0, at most `context_length` wide."""
        encodings = self._backend.encode_batch_fast(_checked(texts))
        num_truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        if num_truncated and not self.num_truncated:
            first = next(text for text, encoding in zip(texts, encodings, strict=True) if encoding.overflowing)
            warnings.warn(
                f"texts longer than {self.context_length} tokens are cut off, the first: {first[:40]!r}...",
                stacklevel=2,
            )
        self.num_truncated += num_truncated
        longest = len(encodings[0].ids) if encodings else 2
        return np.array([encoding.ids for encoding in encodings], dtype=np.int64).reshape(len(encodings), longest)


def load_tokenizer(path: Path, context_length: int) -> Tokenizer:
    """The tokenizer in the file `path` (a tokenizer.json)."""
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"), context_length)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; it belongs to the weights beside it") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_tokenizer(tokenizer_json: str, context_length: int) -> Tokenizer:
    """The tokenizer that this text (the content of a tokenizer.json) describes."""
    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json), context_length)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"not a tokenizer.json: {error}") from None


def build_tokenizer(captions: Iterable[str]) -> str:
    """A tokenizer.json for these captions: a token a Chinese character, a token a word of other scripts.

    Words that do not occur in the captions are spelt in their characters; unknown characters become [UNK].
    """
    # Full-width letters, digits and marks become the plain ones first: people type both.
    normalizer = normalizers.Sequence([*_quotes(), normalizers.NFKC(), normalizers.BertNormalizer()])
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word
        for caption in sorted(set(captions))
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(caption))
    )
    characters = sorted({character for word in words for character in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))[:MAX_WORDS]
    pieces = sorted({f"##{character}" for word in words if len(word) > 1 for character in word})
    return _backend([PAD, UNKNOWN, CLS, SEP, *characters, *pieces, *frequent], normalizer).to_str(pretty=True)


def tokenizer_of_vocabulary(path: Path) -> str:
    """A tokenizer.json that splits like Google's BERT with the vocabulary in the file `path` (a vocab.txt)."""
    tokens = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    missing = [token for token in (PAD, UNKNOWN, CLS, SEP) if token not in tokens]
    if missing or tokens[0] != PAD:
        raise ValueError(f"{path}: not a BERT vocabulary: {PAD} must be its first line, and {missing} are missing")
    return _backend(tokens, normalizers.Sequence([*_quotes(), normalizers.BertNormalizer()])).to_str(pretty=True)


def _backend(tokens: Sequence[str], normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    # The special tokens are not registered as such, so that a text that contains "[SEP]" is split like any other.
    backend = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=MAX_WORD_LETTERS)
    )
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing((SEP, vocabulary[SEP]), (CLS, vocabulary[CLS]))
    return backend


def _quotes() -> list[normalizers.Normalizer]:
    return [
        normalizers.Replace(quote, '"')
        for quote in ("\N{LEFT DOUBLE QUOTATION MARK}", "\N{RIGHT DOUBLE QUOTATION MARK}")
    ]


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"a list of texts is wanted, not one text: [{texts[:40]!r}]")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a str, not {type(text).__name__}")
    return list(texts)
