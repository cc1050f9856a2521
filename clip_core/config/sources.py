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


class IconparkSource(Section):
    """Built-in real data: IconPark's icons in four styles, with the names that their makers gave them in Chinese."""

    source: Literal["iconpark"]
    path: Name  # the checked cache that set-up filled
    valid_percent: Annotated[int, Field(ge=1, le=40)] | None  # of the titles; null: none
    test_percent: Annotated[int, Field(ge=1, le=40)] | None


Source = Annotated[EmojiSource | TableSource | MugeSource | IconparkSource, Field(discriminator="source")]
