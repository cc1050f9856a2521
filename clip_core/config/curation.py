"""`curate`: what counts as a near-duplicate."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Section


class Curate(Section):
    near_duplicate_distance: Annotated[int, Field(ge=0, le=16)]  # bits in which two perceptual hashes may differ
