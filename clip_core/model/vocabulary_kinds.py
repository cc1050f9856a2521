"""The kinds of tokenizer.json that can lose tokens: BERT's word pieces, and the byte-pair merges of SigLIP 2.

Both are trees as `json` reads them; a row is a token's number, and that of its embedding.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from clip_core.errors import UserError
from clip_core.text import CLS, PAD, SEP, UNKNOWN

SPECIAL = (PAD, UNKNOWN, CLS, SEP, "[MASK]")


def read_tokenizer(path: Path, vocab_size: int) -> dict:
    """The tokenizer.json at `path`, if it is of a known kind."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    kinds = tree["model"]["type"], (tree.get("post_processor") or {}).get("type")
    plain = kinds == ("WordPiece", "BertProcessing") and not tree.get("added_tokens")
    if not plain and kinds != ("BPE", "TemplateProcessing"):
        raise UserError(
            f"{path}: only plain word pieces in BERT's manner and merges in Gemma's can be pruned, not {kinds}"
        )
    vocabulary = tree["model"]["vocab"]
    if sorted(vocabulary.values()) != list(range(vocab_size)):
        raise UserError(f"{path}: {len(vocabulary)} tokens do not fit the weights, which have {vocab_size}")
    return tree


def with_needed(tree: dict, rows: Iterable[int]) -> list[int]:
    """The rows and those that they need, in order: special tokens, and of merges all bytes and what they go through.

    Then a text whose tokens are among `rows` is split as before.
    """
    vocabulary, kept = tree["model"]["vocab"], set(rows)
    if tree["model"]["type"] == "WordPiece":
        return sorted(kept | {vocabulary[token] for token in SPECIAL if token in vocabulary})
    kept |= {token["id"] for token in tree["added_tokens"]}
    kept |= {number for token, number in vocabulary.items() if token.startswith("<0x") and len(token) == 6}
    rank = {_pair(merge): place for place, merge in enumerate(tree["model"]["merges"])}
    added = {token["content"] for token in tree["added_tokens"]}
    for token in [token for token, number in vocabulary.items() if number in kept and token not in added]:
        kept |= {vocabulary[part] for part in _way_to(token, rank) if part in vocabulary}
    return sorted(kept)


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
        model["merges"] = [m for m, (a, b) in pairs if a in vocabulary and b in vocabulary and a + b in vocabulary]
        changed = {"added_tokens": [token | {"id": number[token["id"]]} for token in tree["added_tokens"]]}
    return json.dumps(tree | changed | {"model": model}, ensure_ascii=False, indent=2)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _way_to(token: str, rank: dict[tuple[str, str], int]) -> set[str]:
    """All that a token's characters become until they are one: the merge that comes first in the list is made first."""
    parts = list(token)
    seen = set(parts)
    while len(parts) > 1:
        place = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), len(rank)))
        if (parts[place], parts[place + 1]) not in rank:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        seen.add(parts[place])
    return seen
