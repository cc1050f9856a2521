"""Set-up of the built-in data: the pinned npm packages, checked and rendered once into a cache that ingest reads.

python -m clip_core.data.sources.emoji_fetch .cache/emoji
"""

import sys
from pathlib import Path

from clip_core.data.sources import emoji_packages, iconify
from clip_core.data.sources.drawn_cache import Drawings, fill
from clip_core.data.sources.emoji_packages import NAMES, read_artworks, read_concepts
from clip_core.errors import told_to_the_user


def main(cache: Path) -> None:
    """Fills `cache` unless it is already whole; what an interrupted run has downloaded is used again."""
    fill(cache, emoji_packages.TABLE, (emoji_packages, iconify), drawings)


def drawings(packages: dict[str, Path]) -> Drawings:
    """The concepts and how each artwork draws them."""
    concepts = read_concepts(packages[NAMES])
    svgs, artworks = read_artworks(packages, concepts)
    return Drawings(concepts, "hexcode", svgs, artworks)


if __name__ == "__main__":
    with told_to_the_user(OSError):
        main(Path(sys.argv[1]))
