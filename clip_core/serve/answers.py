"""What the gateway remembers of answers to texts, in place of Triton's own cache, which keeps those that failed."""

import hashlib
from collections import OrderedDict
from typing import Any

Key = tuple[str | bytes, ...]


class Answers:
    """The `most` answers used last. Who keeps one has seen that it is whole, and which release has made it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_hits = self.num_misses = 0
        self._kept: OrderedDict[Key, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, release: str, model: str, *texts: bytes) -> Any | None:
        """What the model of the release has answered to the texts; None when that is not known (any more)."""
        if not self.most:
            return None
        if (key := _key(release, model, texts)) not in self._kept:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._kept.move_to_end(key)
        return self._kept[key]

    def keep(self, answer: Any, release: str, model: str, *texts: bytes) -> None:
        """Remembers the answer; the one that was not used for longest goes."""
        if self.most:
            self._kept[_key(release, model, texts)] = answer
            if len(self._kept) > self.most:
                self._kept.popitem(last=False)


def _key(release: str, model: str, texts: tuple[bytes, ...]) -> Key:
    return release, model, *(hashlib.sha256(text).digest() for text in texts)  # a text may have 16 KiB
