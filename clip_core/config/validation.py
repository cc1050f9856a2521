"""`validate`: what a pair, and what all pairs together, may be."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Count, Inside, Positive, Section, Share


class Limits(Section):
    """What a picture or a caption may be; a row outside is quarantined."""

    min_side: Count  # pixels
    max_pixels: Count
    max_bytes: Count
    max_aspect: Annotated[float, Field(ge=1)]  # longer side / shorter side
    max_caption_length: Count  # characters


class Validate(Section):
    limits: Limits
    min_mean_cjk_share: Share  # over the Chinese captions of the batch
    max_bad_share: Share  # of the rows; above it the pipeline stops, as above those that follow
    max_duplicate_captions: Share  # of the rows with a caption, those whose caption another has
    max_duplicate_pictures: Share  # of the pictures, those whose bytes another has
    max_split_overlap: Share  # of the distinct pictures, those that lie in several splits
    max_drift: Positive  # population stability index of a histogram against the baseline's
    baseline: Inside | None  # the file that `python -m clip_core.data.baseline` wrote; null: nothing to compare with
