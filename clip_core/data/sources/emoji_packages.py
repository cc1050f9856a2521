"""What the pinned npm packages hold: the concepts with their names, and each artwork's pictures as SVG."""

import json
import re
import tarfile
import tomllib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("emoji_packages.toml")
NAMES = "emojibase-data"
ARTWORK = "@iconify-json/"
COMPONENTS, FLAGS = 2, 9  # emojibase's groups that are left out: skin tones and hair; flags
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
    return [Package(**row) for row in tomllib.loads(TABLE.read_text())["packages"]]


def read_member(tgz: Path, name: str) -> Any:
    """The JSON file `name` in the package; nothing is unpacked onto the disk."""
    with tarfile.open(tgz) as archive:
        member = archive.extractfile(f"package/{name}")
        if member is None:
            raise ValueError(f"{tgz}: {name} is not a plain file in this package")
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
    """Each artwork's SVG by hexcode, and each artwork's title, author, licence and links.

    Four artworks list the hexcodes of their pictures. The others have names only: a concept's picture there is the
    one that bears its English name, or the name that it has in one of the four.
    """
    tgzs = {p.name.removeprefix(ARTWORK): folder / p.file_name for p in pinned_packages() if p.name != NAMES}
    listed = {
        artwork: {plain(hexcode): name for hexcode, name in read_member(tgz, "chars.json").items()}
        for artwork, tgz in tgzs.items()
    }
    svgs: dict[str, dict[str, str]] = {}
    about: dict[str, dict] = {}
    for artwork, tgz in tgzs.items():
        icons = read_member(tgz, "icons.json")
        svgs[artwork] = {}
        for concept in concepts:
            hexcode = plain(concept["hexcode"])
            known = [names_of[hexcode] for names_of in listed.values() if hexcode in names_of]
            names = [*filter(None, [listed[artwork].get(hexcode)]), slug(concept["en_name"]), *known]
            svg = next((found for name in names if (found := svg_of(icons, name))), None)
            if svg:
                svgs[artwork][concept["hexcode"]] = svg
        info = read_member(tgz, "info.json")
        about[artwork] = {"title": info["name"], "author": info["author"], "licence": info["license"]}
    return svgs, about


def plain(hexcode: str) -> str:
    """The hexcode without variation selectors, which the packages write differently."""
    return hexcode.lower().replace("-fe0f", "")


def slug(name: str) -> str:
    """The English name as the packages spell it: `man’s shoe` -> `mans-shoe`."""
    ascii_name = unicodedata.normalize("NFKD", re.sub("[’'“”]", "", name.lower())).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", ascii_name).strip("-")


def svg_of(icons: dict, name: str) -> str | None:
    """The named picture of an Iconify set as a square SVG document, or None if the set has none."""
    icon, flipped = icons["icons"].get(name), False
    while icon is None:
        alias = icons.get("aliases", {}).get(name)
        if alias is None:
            return None
        flipped ^= alias.get("hFlip", False)
        icon, name = icons["icons"].get(alias["parent"]), alias["parent"]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    body = f'<g transform="translate({width} 0) scale(-1 1)">{icon["body"]}</g>' if flipped else icon["body"]
    side = max(width, height)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{(width - side) / 2} {(height - side) / 2} {side} {side}">'
        f"{body}</svg>"
    )
