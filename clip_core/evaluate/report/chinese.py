"""The report in Chinese: both languages stand in the page, and its switch shows one of them.

The sections write English; chinese.toml has the Chinese of it. What it lacks, as names, figures and code, is for both.
"""

import re
import tomllib
from functools import cache
from importlib.resources import files

# an element without another of its kind in it
ELEMENT = re.compile(r"<(h[1-4]|p|th|td|a|b|small|span|summary|figcaption)\b([^>]*)>((?:[^<]+|<(?!/?\1\b))*)</\1>")


def bilingual(html: str) -> str:
    """The page with the Chinese beside each phrase that has one."""
    return ELEMENT.sub(_element, html)


def chinese_of(english: str) -> str | None:
    """The Chinese of a phrase, with what stands in its places."""
    exact, patterns = _phrases()
    if english in exact:
        return exact[english]
    for pattern, chinese in patterns:
        if found := pattern.fullmatch(english):
            return chinese.format(*(chinese_of(part) or part for part in found.groups()))
    return None


def _element(match: re.Match[str]) -> str:
    """An element whose whole content is a phrase, or whose parts may be."""
    tag, attributes, content = match.groups()
    if chinese_of(content):
        return f"<{tag}{attributes}>{_both(content)}</{tag}>"
    parts, end = [], 0
    for child in ELEMENT.finditer(content):
        parts += [_texts(content[end : child.start()]), _element(child)]
        end = child.end()
    return f"<{tag}{attributes}>{''.join(parts)}{_texts(content[end:])}</{tag}>"


def _texts(html: str) -> str:
    """What stands between the tags."""
    return "".join(part if part.startswith("<") else _both(part) for part in re.split(r"(<[^>]*>)", html))


def _both(english: str) -> str:
    chinese = chinese_of(english.strip())
    return english if chinese is None else f'<bdi lang="en">{english}</bdi><bdi lang="zh">{chinese}</bdi>'


@cache
def _phrases() -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """The phrases without places, and those with some."""
    table = tomllib.loads(files("clip_core.evaluate.report").joinpath("chinese.toml").read_text(encoding="utf-8"))
    exact = {english: chinese for english, chinese in table.items() if "{}" not in english}
    patterns = [
        (re.compile(re.escape(english).replace(r"\{\}", "(.+?)"), re.DOTALL), chinese)
        for english, chinese in table.items()
        if "{}" in english
    ]
    return exact, patterns
