"""The rows that a part gives, kept and rejected, for sources that know a picture with its captions at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from clip_core.config.sources import FolderSource, SavedSource, WebDatasetSource
from clip_core.data.pairs import COLUMNS, HELD_OUT, ORIGIN
from clip_core.data.sources import MEASURED, Harvest
from clip_core.data.sources.folders import shown
from clip_core.data.sources.split import SPLIT_NAMES, split_of

UNKNOWN = "unknown"  # the licence where params.yaml says null


class Origin(NamedTuple):
    file: str
    line: int  # or the number of the member or row; 0 where a file is meant as a whole


@dataclass(frozen=True)
class Record:
    """What a source says of one picture."""

    id: str
    has_picture: bool
    captions: tuple[str, ...]  # none of them blank
    origin: Origin
    split: str | None = None  # null: the id decides
    language: str | None = None
    licence: str | None = None


@dataclass
class Rows:
    """What was found in a part so far."""

    data: FolderSource | SavedSource | WebDatasetSource
    places: tuple[str, ...] = ()  # the names of splits that have a place of their own: no id decides on them
    pairs: list[dict] = field(default_factory=list)
    rejected: list[dict] = field(default_factory=list)

    def add(self, record: Record) -> bool:
        """Adds a row for each caption, or the one reason why there is none; says whether rows were kept.

        In valid and test a picture without captions and captions without picture are rows, too.
        """
        split = self._split_of(record)
        if record.split and not split:
            return self.reject("split_unknown", record.origin, record.id)
        if not record.has_picture and (split not in HELD_OUT or not record.captions):
            return self.reject("no_picture", record.origin, record.id, *record.captions[:1])
        if not record.captions and split not in HELD_OUT:
            return self.reject("no_caption", record.origin, record.id)
        self.pairs += [self._row(record, split, i, text) for i, text in enumerate(record.captions or [None])]
        return True

    def reject(self, reason: str, origin: Origin, image_id: str, caption: str = "") -> bool:
        """Notes a row that can be no pair; says False."""
        named = {"image_id": shown(image_id), "caption": shown(caption)}
        self.rejected.append({"reason": reason, "file": shown(origin.file), "line": origin.line} | named)
        return False

    def harvest(self, images: Iterator[tuple[str, bytes]], **more: int) -> Harvest:
        """All that was found, with the pictures."""
        import pandas as pd

        return Harvest(
            pairs=pd.DataFrame(self.pairs, columns=[name for name in COLUMNS if name not in MEASURED]),
            images=images,
            rejected=pd.DataFrame(self.rejected, columns=[*ORIGIN, "image_id", "caption"]),
            more=more,
        )

    def split_at(self, place: str) -> str | None:
        """The split of what lies there; None where ids decide: in train, too, as it gives what has no place."""
        return place if place in self.places and SPLIT_NAMES[place] != "train" else None

    def _split_of(self, record: Record) -> str | None:
        if record.split:
            return SPLIT_NAMES.get(record.split)
        if not record.has_picture:
            return None
        apart = {SPLIT_NAMES[place] for place in self.places}
        valid_percent = 0 if "valid" in apart else self.data.valid_percent
        return split_of(record.id, valid_percent, 0 if "test" in apart else self.data.test_percent)

    def _row(self, record: Record, split: str | None, number: int, caption: str | None) -> dict[str, str | None]:
        language = (record.language or "zh") if caption else None
        return {
            "pair_id": f"{record.id}/{number}",
            "image_id": record.id if record.has_picture else None,
            "text_id": f"{language}-caption-{sha256(caption.encode()).hexdigest()[:12]}" if caption else None,
            "caption": caption,
            "language": language,
            "caption_kind": "caption" if caption else None,
            "concept_id": None,
            "family": None,
            "group": None,
            "split": split,
            "source": self.data.source,
            "licence": record.licence or self.data.licence or UNKNOWN,
        }
