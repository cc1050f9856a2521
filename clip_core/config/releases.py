"""`releases`: how many of them are kept for rolling back, and how much may change in one without a new base."""

from clip_core.config.section import Count, Section, Share


class Releases(Section):
    keep: Count  # of the newest; the one that serves and the one before are kept besides
    max_delta: Share  # of a gallery, that came or went since its base was made; beyond it the two are merged
