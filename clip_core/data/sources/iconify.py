"""Iconify's packages: sets of drawings as JSON, all in one form whoever drew them."""

from pathlib import Path

from clip_core.data.sources.npm_packages import read_member

ARTWORK = "@iconify-json/"  # begins the name of such a package
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def read_about(tgz: Path) -> dict[str, dict | str]:
    """The set's title, author, licence and links."""
    info = read_member(tgz, "info.json")
    return {"title": info["name"], "author": info["author"], "licence": info["license"]}


def svg_of(icons: dict, names: list[str]) -> str | None:
    """The first of the named pictures that an Iconify set has, as a square SVG document, or None if it has none."""
    for name in names:
        flipped = False
        while alias := icons.get("aliases", {}).get(name):
            flipped ^= alias.get("hFlip", False)
            name = alias["parent"]
        if icon := icons["icons"].get(name):
            width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
            body = f'<g transform="translate({width} 0) scale(-1 1)">{icon["body"]}</g>' if flipped else icon["body"]
            side = max(width, height)
            box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
            return f'<svg {NAMESPACES} width="{side}" height="{side}" viewBox="{box}">{body}</svg>'
    return None
