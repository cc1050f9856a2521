"""The tokenizer: one path from text to `token_ids` for training, evaluation, export and serving."""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from clip_core.errors import UserError

PAD, UNKNOWN, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
MAX_WORDS = 30_000  # the rarest words of larger captions are spelt in characters
AT_ONCE = 512  # texts: of more objects at a time, Python's garbage collector would search all memory for cycles
MAX_WORD_LETTERS = 200  # longer words become [UNK], as in Chinese-CLIP

# Code points that the reference (with the Unicode 14 of its Python) sees otherwise than the tables of `tokenizers`, and
# what stands in for them: no vocabulary knows them, so it only matters whether they end a word.
UNKNOWN_LETTER, UNKNOWN_MARK = "\ua000", "\u2e2e"
LETTERS = "166D 1734 E000-F8FF F0000-10FFFD"  # above all private use, which `tokenizers` drops
MARKS = (  # newer punctuation, and a stretch of the ideographs of Extension E
    "61D 9FD A76 C77 C84 1B7D-1B7E 2E43-2E4F 2E52-2E5D 10EAD 10F55-10F59 10F86-10F89 1144B-1144F 1145A-1145B 1145D "
    "11660-1166C 116B9 1183B 11944-11946 119E2 11A3F-11A46 11A9A-11A9C 11A9E-11AA2 11C41-11C45 11C70-11C71 11EF7-11EF8 "
    "11FFF 12FF1-12FF2 16E97-16E9A 16FE2 1E95E-1E95F 2B820-2B91F"
)
DROPPED = (  # newer accents and invisible marks
    "7FD 890-891 898-89F 8CA-8E2 9FE AFA-AFF B55 C04 C3C D00 D3B-D3C D81 EBA 180F 1885-1886 1ABF-1ACE 1DF6-1DFB A82C "
    "A8C5 A8FF A9BD 10D24-10D27 10EAB-10EAC 10F46-10F50 10F82-10F85 11070 11073-11074 110C2 110CD 111C9 111CF 1123E "
    "1133B 11438-1143F 11442-11444 11446 1145E 1182F-11837 11839-1183A 1193B-1193C 1193E 11943 119D4-119D7 119DA-119DB "
    "119E0 11A01-11A0A 11A33-11A38 11A3B-11A3E 11A47 11A51-11A56 11A59-11A5B 11A8A-11A96 11A98-11A99 11C30-11C36 "
    "11C38-11C3D 11C3F 11C92-11CA7 11CAA-11CB0 11CB2-11CB3 11CB5-11CB6 11D31-11D36 11D3A 11D3C-11D3D 11D3F-11D45 11D47 "
    "11D90-11D91 11D95 11D97 11EF3-11EF4 13430-13438 16F4F 16FE4 1CF00-1CF2D 1CF30-1CF46 1E000-1E006 1E008-1E018 "
    "1E01B-1E021 1E023-1E024 1E026-1E02A 1E130-1E136 1E2AE 1E2EC-1E2EF 1E944-1E94A"
)
# A sigma that ends a word has a small letter of its own, which Python's `lower` knows and `tokenizers` does not. Before
# it stands \K (what comes before is kept) and no (?<= ), which would try every length, at every sigma.
CASED, IGNORED = r"[\p{Cased}&&[^\p{Case_Ignorable}]]", r"\p{Case_Ignorable}*+"
LAST_SIGMA = rf"{CASED}{IGNORED}\K\x{{3A3}}(?!{IGNORED}{CASED})"


class Tokenizer:
    """Makes `token_ids` of texts; counts the texts that were too long in `num_truncated`."""

    def __init__(self, backend: tokenizers.Tokenizer, context_length: int) -> None:
        backend.enable_truncation(context_length)
        backend.enable_padding(pad_id=0, pad_token=PAD)
        backend.encode_special_tokens = True  # a text that contains "<eos>" is split like any other
        self._backend = backend
        self.num_ends: int = backend.num_special_tokens_to_add(False)  # tokens of a text that says nothing
        self.context_length = context_length
        self.vocab_size = backend.get_vocab_size()
        self.num_truncated = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The texts as int64 (n, longest): [CLS] .. [SEP], padded with 0, at least 2, at most `context_length` wide.

        Whether padding means anything is the text tower's to know.
        """
        texts = _checked(texts)
        parts = [self._encode(texts[start : start + AT_ONCE]) for start in range(0, len(texts), AT_ONCE)]
        token_ids = np.zeros((len(texts), max([2, *(part.shape[1] for part in parts)])), np.int64)
        for number, part in enumerate(parts):
            token_ids[number * AT_ONCE : number * AT_ONCE + len(part), : part.shape[1]] = part
        return token_ids

    def _encode(self, texts: list[str]) -> np.ndarray:
        encodings = self._encodings(texts)
        num_truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        if num_truncated and not self.num_truncated:
            first = next(text for text, encoding in zip(texts, encodings, strict=True) if encoding.overflowing)
            warnings.warn(
                f"texts longer than {self.context_length} tokens are cut off, the first: {first[:40]!r}...",
                stacklevel=3,
            )
        self.num_truncated += num_truncated
        return np.array([encoding.ids for encoding in encodings], np.int64)

    def _encodings(self, texts: list[str]) -> list[tokenizers.Encoding]:
        try:
            return self._backend.encode_batch_fast(texts)
        except TypeError:  # half an emoji: a surrogate without its other half, which is no Unicode
            return self._backend.encode_batch_fast([re.sub("[\ud800-\udfff]", UNKNOWN_LETTER, text) for text in texts])


def load_tokenizer(path: Path, context_length: int) -> Tokenizer:
    """The tokenizer in the file `path` (a tokenizer.json)."""
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"), context_length)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it belongs to the weights beside it") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def parse_tokenizer(tokenizer_json: str, context_length: int) -> Tokenizer:
    """The tokenizer that this text (the content of a tokenizer.json) describes."""
    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json), context_length)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"not a tokenizer.json: {error}") from None


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
    """A tokenizer.json with the vocabulary in the file `path` (a vocab.txt).

    It splits every text exactly as Chinese-CLIP's tokenizer (that of Google's BERT) does after curly quotes have become
    straight ones, as in Chinese-CLIP's training.
    """
    tokens = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    missing = [token for token in (PAD, UNKNOWN, CLS, SEP) if token not in tokens]
    if missing or tokens[0] != PAD:
        raise UserError(f"{path}: not a BERT vocabulary: {PAD} must be its first line, and {missing} are missing")
    if len(set(tokens)) < len(tokens):  # then the number of a token is not that of its line
        raise UserError(f"{path}: not a BERT vocabulary: {Counter(tokens).most_common(1)[0][0]!r} occurs twice")
    normalizer = normalizers.Sequence(
        [
            *_quotes(),
            normalizers.Replace(_any_of(DROPPED), ""),
            normalizers.Replace(_any_of(LETTERS), UNKNOWN_LETTER),
            normalizers.Replace(_any_of(MARKS), UNKNOWN_MARK),
            normalizers.BertNormalizer(strip_accents=False, lowercase=False),
            normalizers.Replace(tokenizers.Regex(LAST_SIGMA), "\N{GREEK SMALL LETTER FINAL SIGMA}"),
            normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False),
        ]
    )
    return _backend(tokens, normalizer).to_str(pretty=True)


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


def _any_of(code_points: str) -> tokenizers.Regex:
    ranges = ("-".join(rf"\x{{{end}}}" for end in span.split("-")) for span in code_points.split())
    return tokenizers.Regex(f"[{''.join(ranges)}]")


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"a list of texts is wanted, not one text: [{texts[:40]!r}]")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a str, not {type(text).__name__}")
    return list(texts)
