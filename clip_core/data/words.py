"""General Chinese words, without those by which a concept or a word that training never shows could be known."""

from collections.abc import Iterable
from pathlib import Path

from clip_core.data.characters import characters_of
from clip_core.data.pairs import HELD_OUT
from clip_core.data.store import open_store


def general_words(pieces: Iterable[str]) -> list[str]:
    """The words in Chinese characters, and none that is traditional alone, of a vocabulary of pieces, in its order."""
    words = list(dict.fromkeys(piece.lstrip("\N{LOWER ONE EIGHTH BLOCK}") for piece in pieces))
    found = characters_of(words)
    are_chinese = (found.chinese == found.length) & (found.length > 0) & (found.traditional == 0)
    return [word for word, is_chinese in zip(words, are_chinese, strict=True) if is_chinese]


def held_out_words(packed: Path) -> set[str]:
    """The Chinese unseen words, and all names and keywords of concepts in valid and test that training never shows."""
    held_out: set[str] = set()
    for split in HELD_OUT:
        store = open_store(packed / split)
        for shard in range(len(store.manifest["shards"])):
            pairs = store.pairs_of([shard], ("language", "caption", "caption_kind", "seen"))
            is_held_out = ~pairs["seen"].astype(bool) | (pairs["caption_kind"] == "unseen_word")
            held_out |= set(pairs["caption"][(pairs["language"] == "zh") & is_held_out])
    return held_out


def without(words: Iterable[str], held_out: set[str]) -> list[str]:
    """The words that neither are a held-out one nor contain one of two characters or more."""
    return [word for word in words if word not in held_out and held_out.isdisjoint(_parts(word))]


def _parts(word: str) -> set[str]:
    ends = range(len(word) + 1)
    return {word[start:end] for end in ends for start in range(end - 1)}
