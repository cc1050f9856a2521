"""`loader`: who reads, decodes and tokenizes training pairs: no stage's params name it, for it decides no bit."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Count, Section


class Loader(Section):
    workers: Annotated[int, Field(ge=0)] | None  # processes; null: one a core, none where all pictures fit into memory
    prefetch: Count  # portions of up to 256 pairs that each of them has ready


IN_PROCESS = Loader(workers=0, prefetch=1)
