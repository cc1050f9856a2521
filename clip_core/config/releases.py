"""`releases`: how many of them are kept for rolling back."""

from clip_core.config.section import Count, Section


class Releases(Section):
    keep: Count  # of the newest; the one that serves and the one before are kept besides
