"""`data`: where the pairs come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clip_core.config.section import Name, Section


class EmojiSource(Section):
    """The built-in real data: emoji pictures of eight artworks with their Chinese and English names."""

    source: Literal["emoji"]
    path: Name  # the checked cache that set-up filled
    train_artworks: Annotated[tuple[Name, ...], Field(min_length=1)]
    valid_artwork: Name
    test_artwork: Name
    unseen_percent: Annotated[int, Field(ge=1, le=40)]  # of the concepts, for valid and for test each

    @model_validator(mode="after")
    def _artworks_are_distinct(self) -> "EmojiSource":
        artworks = (*self.train_artworks, self.valid_artwork, self.test_artwork)
        if len(set(artworks)) < len(artworks):
            raise ValueError("train_artworks, valid_artwork and test_artwork must name different artworks")
        return self


class TableSource(Section):
    """A folder of pictures with a CSV: columns `image` and `caption` and, if wanted, `split` and `language`."""

    source: Literal["table"]
    path: Name  # the folder; the column `image` is relative to it
    table: Name  # the CSV's name in the folder
    licence: Name  # of the pictures
    valid_percent: Annotated[int, Field(ge=1, le=40)]  # of the pictures; used where the CSV has no column `split`
    test_percent: Annotated[int, Field(ge=1, le=40)]


class MugeSource(Section):
    """The reference's format: `{name}_imgs.tsv` (id, base64 of a picture) with `{name}_texts.jsonl`."""

    source: Literal["muge"]
    path: Name  # the folder
    licence: Name  # of the pictures
    train: Name  # the name before `_imgs.tsv` of the files for the split
    valid: Name | None  # null: part of train's pictures
    test: Name  # one whose texts name their pictures; of MUGE's own test those are not published
    valid_percent: Annotated[int, Field(ge=1, le=40)]  # of train's pictures; used where valid is null

    @model_validator(mode="after")
    def _splits_are_distinct(self) -> "MugeSource":
        if len({self.train, self.valid, self.test}) < 3:
            raise ValueError("train, valid and test must name different files")
        return self


Percent = Annotated[int, Field(ge=1, le=40)]


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


Source = Annotated[
    EmojiSource | TableSource | MugeSource | WebDatasetSource | FolderSource | SavedSource,
    Field(discriminator="source"),
]
