"""The tokenizers that can lose tokens: BERT's word pieces, and the byte-pair merges of SigLIP 2.

Each is a tokenizer.json as a tree; a row is a token's number, and that of its embedding.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from clip_core.errors import UserError
from clip_core.model.pretrained.siglip_tokenizer import is_of_siglip2
from clip_core.text import CLS, PAD, SEP, UNKNOWN

SPECIAL = (PAD, UNKNOWN, CLS, SEP, "[MASK]")
BYTE = re.compile("<0x[0-9A-F]{2}>")
# Chinese characters (of all extensions), ASCII, and the marks of both. No capitals: both kinds make them small first.
CHINESE_AND_ENGLISH = re.compile(
    "[\u2581 -@\\[-~\u00b7\u2010-\u2027\u2030-\u205e\u3000-\u303f\u3400-\u9fff\uff01-\uff65\U00020000-\U000323af]+"
)


def read_tokenizer(path: Path, vocab_size: int) -> dict:
    """The tokenizer.json at `path`, if it is one of these and has `vocab_size` tokens."""
    text = path.read_text(encoding="utf-8")
    tree = json.loads(text)
    kinds = tree["model"]["type"], (tree.get("post_processor") or {}).get("type")
    if not is_of_siglip2(text) and (kinds != ("WordPiece", "BertProcessing") or tree.get("added_tokens")):
        raise UserError(f"{path}: only BERT's plain word pieces and SigLIP 2's merges can be pruned, not {kinds}")
    vocabulary = tree["model"]["vocab"]
    if sorted(vocabulary.values()) != list(range(vocab_size)):
        raise UserError(f"{path}: {len(vocabulary)} tokens do not fit the weights, which have {vocab_size}")
    return tree


def with_needed(tree: dict, rows: Iterable[int]) -> list[int]:
    """`rows` in order, with the special tokens, and of merges all bytes and what the tokens are merged of.

    Then a text whose tokens are among `rows` is split as before: every merge on its way is there, in the old order.
    """
    vocabulary, kept = tree["model"]["vocab"], set(rows)
    if tree["model"]["type"] == "WordPiece":
        return sorted(kept | {vocabulary[token] for token in SPECIAL if token in vocabulary})
    whole = {token["content"] for token in tree["added_tokens"]} | {token for token in vocabulary if BYTE.match(token)}
    rank = {_pair(merge): place for place, merge in enumerate(tree["model"]["merges"])}
    merged = [token for token, row in vocabulary.items() if row in kept and token not in whole]
    needed = whole.union(*(_way_to(token, rank) for token in merged))
    return sorted(kept | {vocabulary[token] for token in needed if token in vocabulary})


def rebuilt(tree: dict, rows: Sequence[int]) -> str:
    """The tokenizer.json with the tokens `rows` alone, numbered anew in their old order."""
    number = {old: new for new, old in enumerate(rows)}
    vocabulary = {token: number[old] for token, old in tree["model"]["vocab"].items() if old in number}
    model = tree["model"] | {"vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1]))}
    if model["type"] == "WordPiece":
        ends = {end: [token, vocabulary[token]] for end, token in (("sep", SEP), ("cls", CLS))}
        changed = {"post_processor": tree["post_processor"] | ends}
    else:
        pairs = ((merge, _pair(merge)) for merge in model["merges"])
        model["merges"] = [m for m, (a, b) in pairs if {a, b, a + b} <= vocabulary.keys()]
        changed = {"added_tokens": [token | {"id": number[token["id"]]} for token in tree["added_tokens"]]}
    return json.dumps(tree | changed | {"model": model}, ensure_ascii=False, indent=2)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _way_to(token: str, rank: dict[tuple[str, str], int]) -> set[str]:
    """All that a token's characters become until they are one: of possible merges the first in the list is made."""
    parts = list(token)
    seen = set(parts)
    while len(parts) > 1:
        place = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), len(rank)))
        if (parts[place], parts[place + 1]) not in rank:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        seen.add(parts[place])
    return seen
