"""What the pinned npm packages hold: the concepts with their names, and each artwork's pictures as SVG."""

import json
import re
import tarfile
import tomllib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_core.errors import UserError

TABLE = Path(__file__).with_name("emoji_packages.toml")
NAMES = "emojibase-data"
ARTWORK = "@iconify-json/"
COMPONENTS, FLAGS = 2, 9  # emojibase's groups that are left out: skin tones and hair; flags
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
GENDER_VARIANT = re.compile("-264[02]")  # "woman running" beside "person running"


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    sha256: str  # of the .tgz

    @property
    def file_name(self) -> str:
        """The name that `npm pack` gives the package's file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def pinned_packages() -> list[Package]:
    """The packages of the committed table."""
    return [Package(**row) for row in tomllib.loads(TABLE.read_text(encoding="utf-8"))["packages"]]


def read_member(tgz: Path, name: str) -> Any:
    """The JSON file `name` in the package; nothing is unpacked onto the disk."""
    with tarfile.open(tgz) as archive:
        member = archive.extractfile(f"package/{name}")
        if member is None:
            raise UserError(f"{tgz}: {name} is not a plain file in this package")
        return json.load(member)


def read_concepts(tgz: Path) -> list[dict]:
    """The concepts: everyday emoji with a Chinese and an English name and keywords, in Unicode's order."""
    english = {entry["hexcode"]: entry for entry in read_member(tgz, "en/data.json")}
    subgroups = {s["order"]: s["key"] for s in read_member(tgz, "en/messages.json")["subgroups"]}
    return [
        {
            "hexcode": entry["hexcode"].lower(),
            "order": entry["order"],
            "group": entry["group"],
            "subgroup": subgroups[entry["subgroup"]],
            "zh_name": entry["label"],
            "zh_keywords": entry["tags"],
            "en_name": english[entry["hexcode"]]["label"],
            "en_keywords": english[entry["hexcode"]].get("tags", []),
        }
        for entry in sorted(read_member(tgz, "zh/data.json"), key=lambda entry: entry.get("order", -1))
        if entry.get("group") not in (None, COMPONENTS, FLAGS) and not GENDER_VARIANT.search(entry["hexcode"])
    ]


def read_artworks(folder: Path, concepts: list[dict]) -> tuple[dict[str, dict[str, str]], dict[str, dict]]:
    """Each artwork's SVG by hexcode, and each artwork's title, author, licence and links."""
    tgzs = {p.name.removeprefix(ARTWORK): folder / p.file_name for p in pinned_packages() if p.name != NAMES}
    listed = {
        artwork: {plain(hexcode): name for hexcode, name in read_member(tgz, "chars.json").items()}
        for artwork, tgz in tgzs.items()
    }
    svgs, about = {}, {}
    for artwork, tgz in tgzs.items():
        icons, info = read_member(tgz, "icons.json"), read_member(tgz, "info.json")
        names = names_in(artwork, concepts, listed)
        svgs[artwork] = {hexcode: svg for hexcode, some in names.items() if (svg := svg_of(icons, some))}
        if not listed[artwork]:  # found by name: one picture for two concepts is wrong for at least one of them
            times = Counter(svgs[artwork].values())
            svgs[artwork] = {hexcode: svg for hexcode, svg in svgs[artwork].items() if times[svg] == 1}
        about[artwork] = {"title": info["name"], "author": info["author"], "licence": info["license"]}
    return svgs, about


def names_in(artwork: str, concepts: list[dict], listed: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """The names that each concept's picture may have in the artwork, the likeliest first, by hexcode.

    Four artworks list the hexcodes of their pictures. The others have names only: the picture there is the one that
    bears the concept's English name, or the name that it has in one of the four.
    """
    return {
        concept["hexcode"]: list(
            dict.fromkeys(
                name
                for name in (
                    listed[artwork].get(plain(concept["hexcode"])),
                    slug(concept["en_name"]),
                    *(names.get(plain(concept["hexcode"])) for names in listed.values()),
                )
                if name
            )
        )
        for concept in concepts
    }


def plain(hexcode: str) -> str:
    """The hexcode without variation selectors, which the packages write differently."""
    return hexcode.lower().replace("-fe0f", "")


def slug(name: str) -> str:
    """The English name as the packages spell it: `man’s shoe` -> `mans-shoe`."""
    ascii_name = unicodedata.normalize("NFKD", re.sub("[’'“”]", "", name.lower())).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", ascii_name).strip("-")


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
