"""Set-up of the built-in sources: pinned npm packages, checked and rendered once into a cache that ingest reads.

python -m clip_core.data.sources.built_in emoji .cache/emoji
"""

import sys
from pathlib import Path

from clip_core.data.sources import emoji_packages, iconify, iconpark_packages
from clip_core.data.sources.drawn_cache import Drawings, fill
from clip_core.errors import told_to_the_user


def main(source: str, cache: Path) -> None:
    """Fills `cache` unless it is already whole; what an interrupted run has downloaded is used again."""
    readers = {"emoji": (emoji_packages, emoji), "iconpark": (iconpark_packages, iconpark_packages.drawings)}
    module, drawings = readers[source]
    fill(cache, module.TABLE, (module, iconify), drawings)


def emoji(packages: dict[str, Path]) -> Drawings:
    """The concepts and how each artwork draws them."""
    concepts = emoji_packages.read_concepts(packages[emoji_packages.NAMES])
    svgs, artworks = emoji_packages.read_artworks(packages, concepts)
    return Drawings(concepts, "hexcode", svgs, artworks)


if __name__ == "__main__":
    with told_to_the_user(OSError):
        main(sys.argv[1], Path(sys.argv[2]))
