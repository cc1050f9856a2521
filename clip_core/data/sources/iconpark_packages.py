"""What IconPark's npm packages hold: the icons with their makers' words for them, and each style's drawings."""

import re
from pathlib import Path

from clip_core.data.sources.drawn_cache import Drawings
from clip_core.data.sources.iconify import ARTWORK, read_about, svg_of
from clip_core.data.sources.npm_packages import read_member

TABLE = Path(__file__).with_name("iconpark_packages.toml")
NAMES = "@icon-park/svg"
# Some tags are two in one, and one ends in a mark.
BETWEEN_TAGS = re.compile(r"[\s,;\N{FULLWIDTH COMMA}\N{FULLWIDTH SEMICOLON}\N{IDEOGRAPHIC COMMA}]+")


def drawings(packages: dict[str, Path]) -> Drawings:
    """The icons and how each style draws them."""
    icons = read_icons(packages[NAMES])
    sets = {name.removeprefix(ARTWORK): tgz for name, tgz in packages.items() if name != NAMES}
    svgs = {style: read_style(tgz, [icon["name"] for icon in icons]) for style, tgz in sets.items()}
    return Drawings(icons, "name", svgs, {style: read_about(tgz) for style, tgz in sets.items()})


def read_icons(tgz: Path) -> list[dict]:
    """The icons in the package's order: name, title, tags and group, all but the name as written in Chinese."""
    return [
        {
            "name": icon["name"],
            "title": icon["title"].strip(),
            "tags": [tag for tags in icon["tag"] for tag in BETWEEN_TAGS.split(tags) if tag],
            "group": icon["categoryCN"].strip(),
        }
        for icon in read_member(tgz, "icons.json")
    ]


def read_style(tgz: Path, names: list[str]) -> dict[str, str]:
    """The SVG of each icon that the style draws; what Iconify hides is withdrawn: it looks like another style's."""
    style = read_member(tgz, "icons.json")
    withdrawn = {name for name, icon in style["icons"].items() if icon.get("hidden")}
    return {name: svg for name in names if name not in withdrawn and (svg := svg_of(style, [name]))}
