"""`data`: where the pairs come from."""

from os.path import commonpath, normpath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from clip_core.config.section import Count, Inside, Name, Positive, Section, Share

Percent = Annotated[int, Field(ge=1, le=40)]
TableColumn = Literal["image", "caption", "image_id", "text_id", "split", "language", "licence"]


class EmojiSource(Section):
    """The built-in real data: emoji pictures of eight artworks with their Chinese and English names."""

    source: Literal["emoji"]
    path: Name  # the checked cache that set-up filled
    train_artworks: Annotated[tuple[Name, ...], Field(min_length=1)]
    valid_artwork: Name
    test_artwork: Name
    unseen_percent: Percent  # of the concepts, for valid and for test each
    unseen_word_percent: Annotated[int, Field(ge=0, le=40)]  # of the Chinese keywords that no name says

    @model_validator(mode="after")
    def _artworks_are_distinct(self) -> "EmojiSource":
        artworks = (*self.train_artworks, self.valid_artwork, self.test_artwork)
        if len(set(artworks)) < len(artworks):
            raise ValueError("train_artworks, valid_artwork and test_artwork must name different artworks")
        return self


class Fetch(Section):
    """How pictures are fetched that a table names by URL."""

    concurrency: Annotated[int, Field(ge=1, le=256)]
    timeout_seconds: Positive  # of one try at one URL, from its name to its last byte
    max_bytes: Annotated[int, Field(ge=1, le=2**27)]  # of a picture
    allow_private: bool  # addresses of this machine and its networks: for a server of your own
    min_yield: Share  # a smaller share of the URLs that succeeds ends the stage


class TableSource(Section):
    """Tables of pairs (CSV, TSV, JSONL, parquet): `image` and `caption`, and what TableColumn has beside them."""

    source: Literal["table"]
    path: Name  # the folder; a path in the column `image` is relative to it
    table: Inside | None  # a table in the folder, a folder or a glob of tables; null: all that lie in `path` itself
    columns: dict[TableColumn, Name] | None  # what a column is called in the tables where not by its own name
    fetch: Fetch | None  # null: as OBVIOUS in data/sources/fetch.py; used where `image` is a URL
    licence: Name | None  # of pictures whose record names none; null: unknown
    valid_percent: Percent | None  # of the pictures whose record names no split; null: 5
    test_percent: Percent | None  # likewise


class MugeSource(Section):
    """The reference's format: `{name}_imgs.tsv` (id, base64 of a picture) with `{name}_texts.jsonl`."""

    source: Literal["muge"]
    path: Name  # the folder
    licence: Name | None  # of the pictures; null: unknown
    train: Inside | None  # the name before `_imgs.tsv` of the files for the split; null: `train`
    valid: Inside | None  # null: part of train's pictures
    # One whose texts name their pictures; of MUGE's own test those are not published.
    test: Inside | None  # null: `test`, else `valid`, if free, there and such a one; else part of train's pictures
    valid_percent: Percent | None  # of train's pictures, for each split that is part of them; null: 5

    @model_validator(mode="after")
    def _splits_are_distinct(self) -> "MugeSource":
        names = [name for name in (self.train or "train", self.valid, self.test) if name]
        if len(set(names)) < len(names):
            raise ValueError("train, valid and test must name different files; train: null names `train`")
        return self


class WebDatasetSource(Section):
    """Tars of pictures with `.txt` and `.json` beside each, as img2dataset writes them."""

    source: Literal["webdataset"]
    path: Name  # the folder of the tars, which may lie in sub-folders
    licence: Name | None  # of the pictures, where a sample's JSON says none; null: unknown
    valid_percent: Percent | None  # of the pictures, where a sample's JSON says no `split`; null: 5
    test_percent: Percent | None


class FolderSource(Section):
    """A folder of pictures with a `.txt` beside each, whose lines are its captions."""

    source: Literal["folder"]
    path: Name
    licence: Name | None  # of the pictures; null: unknown
    valid_percent: Percent | None  # of the pictures, where no sub-folder is named after the split; null: 5
    test_percent: Percent | None


class SavedSource(Section):
    """A folder that the `datasets` library saved (`save_to_disk`), of one data set or of one for each split."""

    source: Literal["saved"]
    path: Name
    image: Name | None  # the column of the pictures; null: the one whose feature is an Image
    captions: Annotated[tuple[Name, ...], Field(min_length=1)] | None  # the columns; null: `caption`, or the only texts
    licence: Name | None  # of the pictures; null: unknown
    valid_percent: Percent | None  # of the pictures, where no split of this name was saved; null: 5
    test_percent: Percent | None


class IconparkSource(Section):
    """Built-in real data: IconPark's icons in four styles, with the names that their makers gave them in Chinese."""

    source: Literal["iconpark"]
    path: Name  # the checked cache that set-up filled
    valid_percent: Percent | None  # of the titles; null: none
    test_percent: Percent | None


OneSource = EmojiSource | IconparkSource | TableSource | MugeSource | WebDatasetSource | FolderSource | SavedSource


class Mixed(Section):
    """A source of a mixture."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]  # begins its ids
    weight: Annotated[float, Field(gt=0)]  # of its training pairs: the share that stays, at most 1
    max_pairs: Count | None  # of its training pairs; null: all
    licence: Name | None  # of its pictures; null: what the source says
    source: Annotated[OneSource, Field(discriminator="source")]

    @field_validator("weight")
    @classmethod
    def _no_pair_is_drawn_twice(cls, weight: float) -> float:
        if weight > 1:
            raise ValueError("must be at most 1: an epoch has each pair once; give the other sources less instead")
        return weight


class MixtureSource(Section):
    """Several sources as one; what they hold out is held out whole."""

    source: Literal["mixture"]
    path: Name  # a folder that all the sources' folders lie in
    sources: Annotated[tuple[Mixed, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sources_are_apart_and_in_path(self) -> "MixtureSource":
        names = [mixed.name for mixed in self.sources]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"sources: the name {repeated[0]!r} stands there more than once")
        for mixed in self.sources:
            folder = normpath(mixed.source.path)
            if commonpath([normpath(self.path), folder]) != normpath(self.path):
                raise ValueError(f"sources: {mixed.name} lies in {folder}, which is not in the mixture's path")
        return self


Source = Annotated[OneSource | MixtureSource, Field(discriminator="source")]
