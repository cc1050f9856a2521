"""What the pinned npm packages hold: the concepts with their names, and each artwork's pictures as SVG."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

from clip_core.data.sources.iconify import ARTWORK, read_about, svg_of
from clip_core.data.sources.npm_packages import read_member

TABLE = Path(__file__).with_name("emoji_packages.toml")
NAMES = "emojibase-data"
COMPONENTS, FLAGS = 2, 9  # emojibase's groups that are left out: skin tones and hair; flags
GENDER_VARIANT = re.compile("-264[02]")  # "woman running" beside "person running"


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


def read_artworks(packages: dict[str, Path], concepts: list[dict]) -> tuple[dict[str, dict[str, str]], dict[str, dict]]:
    """Each artwork's SVG by hexcode, and each artwork's title, author, licence and links."""
    tgzs = {name.removeprefix(ARTWORK): tgz for name, tgz in packages.items() if name != NAMES}
    listed = {
        artwork: {plain(hexcode): name for hexcode, name in read_member(tgz, "chars.json").items()}
        for artwork, tgz in tgzs.items()
    }
    svgs, about = {}, {}
    for artwork, tgz in tgzs.items():
        icons = read_member(tgz, "icons.json")
        names = names_in(artwork, concepts, listed)
        svgs[artwork] = {hexcode: svg for hexcode, some in names.items() if (svg := svg_of(icons, some))}
        if not listed[artwork]:  # found by name: one picture for two concepts is wrong for at least one of them
            times = Counter(svgs[artwork].values())
            svgs[artwork] = {hexcode: svg for hexcode, svg in svgs[artwork].items() if times[svg] == 1}
        about[artwork] = read_about(tgz)
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
