"""`validate`: what a pair may be."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Count, Section, Share


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
    max_bad_share: Share  # of the rows; above it the pipeline stops
