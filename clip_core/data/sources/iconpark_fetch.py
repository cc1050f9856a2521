"""Set-up of the source iconpark: the pinned npm packages, checked and rendered once into a cache that ingest reads.

python -m clip_core.data.sources.iconpark_fetch .cache/iconpark
"""

import sys
from pathlib import Path

from clip_core.data.sources import iconify, iconpark_packages
from clip_core.data.sources.drawn_cache import fill
from clip_core.data.sources.iconpark_packages import drawings
from clip_core.errors import told_to_the_user


def main(cache: Path) -> None:
    """Fills `cache` unless it is already whole; what an interrupted run has downloaded is used again."""
    fill(cache, iconpark_packages.TABLE, (iconpark_packages, iconify), drawings)


if __name__ == "__main__":
    with told_to_the_user(OSError):
        main(Path(sys.argv[1]))
