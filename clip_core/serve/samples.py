"""What the gateway remembers of what is asked: a share of the text searches, as far as `watch` in params.yaml allows.

    serving/samples/<date>.jsonl    a line a query

A thread writes them. Where it can not follow, or fails, queries are not kept; nobody's answer waits for it.
"""

import base64
import json
import logging
import os
import queue
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.config.watch import Watch
from clip_core.serve.queries import ask

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDER = "samples"  # in serving/
WAITING = 256  # queries that are still to be written; more are not kept
PATIENCE = 5.0  # seconds for the features of a query
UNKNOWN = ("[UNK]", "<unk>")  # as vocabularies call what they do not know

log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A text search that was answered."""

    text: str
    release: str
    score: float | None  # of the best picture; None: none was found
    features: np.ndarray | None  # (embed_dim,); None: the answer was made without them


class Sampler:
    """Keeps a share of what is asked while it lives; `address` is that of Triton at this moment."""

    def __init__(self, serving: Path, params: Watch, address: Callable[[], str]) -> None:
        self.serving, self.params, self.address = serving, params, address
        self._waiting: queue.Queue[Asked | None] = queue.Queue(WAITING)
        self._today, self._num_today = date.min, 0
        self._tokenizer: tuple[str, Tokenizer] | None = None  # of the release that was kept last
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def saw(self, text: str, release: str, scores: Sequence[float] | np.ndarray, features: np.ndarray | None) -> None:
        """Keeps the query, perhaps; returns at once. `scores` are of the pictures found, the best first."""
        if random.random() < self.params.share:
            with suppress(queue.Full):
                score = float(scores[0]) if len(scores) else None
                self._waiting.put_nowait(Asked(text, release, score, features))

    def close(self) -> None:
        """Writes what waits, for a moment."""
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(PATIENCE)

    def _work(self) -> None:
        while (asked := self._waiting.get()) is not None:
            try:
                self._keep(asked)
            except Exception as error:  # the edge: whatever it is, the next one may do well
                log.warning("a query is not kept: %r", error)

    def _keep(self, asked: Asked) -> None:
        now = datetime.now(UTC)
        file = self.serving / FOLDER / f"{now.date()}.jsonl"
        if now.date() != self._today:
            tidy(self.serving, self.params)
            self._today, self._num_today = now.date(), len(_lines(file))
        if self._num_today >= self.params.most:
            return
        if self._tokenizer is None or self._tokenizer[0] != asked.release:
            self._tokenizer = asked.release, tokenizer_of(self.serving / "releases" / asked.release)
        features = asked.features if asked.features is not None else self._features(asked)
        length, unknown = facts_of(asked.text, self._tokenizer[1])
        line = {
            "time": now.isoformat(timespec="microseconds"),
            "release": asked.release,
            "length": length,
            "unknown": unknown,
            "score": asked.score,
            "features": base64.b64encode(features.astype("<f2").tobytes()).decode(),
        }
        if self.params.keep == "texts":
            line["text"] = asked.text
        file.parent.mkdir(exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._num_today += 1

    def _features(self, asked: Asked) -> np.ndarray:
        """Triton's, asked for once more: a search has given none."""
        from tritonclient.grpc import InferenceServerClient

        tensors = {"TEXT": np.array([[asked.text.encode()]], dtype=object)}
        client = InferenceServerClient(self.address())
        try:
            features, release = ask(client, "clip_text", tensors, ["text_features", "release"], PATIENCE)
        finally:
            client.close()
        if release[0, 0].decode() != asked.release:
            raise ValueError("a rollout lies between its answer and its features")
        return features[0]


def tokenizer_of(release: Path) -> "Tokenizer":
    """The tokenizer of the release in the folder."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(release / "models" / "text_preprocess" / "1" / "tokenizer.json"))


def facts_of(text: str, tokenizer: "Tokenizer") -> tuple[int, float]:
    """Its length in characters, and the share of its tokens that the vocabulary does not know."""
    tokens = tokenizer.encode(text, add_special_tokens=False).tokens
    return len(text), sum(token in UNKNOWN for token in tokens) / max(1, len(tokens))


def columns(
    lengths: Sequence[int], unknown: Sequence[float], scores: Sequence[float | None], features: np.ndarray
) -> dict[str, np.ndarray]:
    """Queries as what is compared of them: `features` (n, embed_dim), and four facts (n,) each."""
    return {
        "length": np.array(lengths, dtype=float),
        "unknown characters": np.array(unknown, dtype=float),
        "empty answer": np.array([score is None for score in scores], dtype=float),
        "best score": np.round([score or 0.0 for score in scores], 3),  # torch and Triton differ by less
        "features": features.astype(np.float16),
    }


def read(serving: Path, release: str, after: str = "") -> tuple[list[str], dict[str, np.ndarray]]:
    """When queries were kept that the release has answered after a time, in order, and their `columns`."""
    found = []
    for file in sorted((serving / FOLDER).glob("*.jsonl")):
        for line in _lines(file):
            with suppress(ValueError):  # half a line: the gateway was killed
                query = json.loads(line)
                if query["release"] == release and query["time"] > after:
                    found.append(query)
    features = np.frombuffer(b"".join(base64.b64decode(query["features"]) for query in found), "<f2")
    facts = ([query[name] for query in found] for name in ("length", "unknown", "score"))
    return [query["time"] for query in found], columns(*facts, features.reshape(len(found), -1) if found else features)


def tidy(serving: Path, params: Watch) -> None:
    """Removes what is older than may be kept; all, where nothing may."""
    first = datetime.now(UTC).date() - timedelta(days=params.days - 1)
    for file in (serving / FOLDER).glob("*.jsonl"):
        if params.keep == "nothing" or file.stem < str(first):
            file.unlink(missing_ok=True)


def _lines(file: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return file.read_text(encoding="utf-8").splitlines()
    return []
