"""The kinds of characters in captions are counted as one would count them by eye."""

import re

import numpy as np
import pytest

from clip_core.data.characters import characters_of


@pytest.mark.parametrize(
    ("caption", "chinese", "simplified", "traditional", "script"),
    [
        ("一只猫", 3, 1, 0, "simplified"),  # written 貓 in traditional Chinese
        ("汉语和爱", 4, 3, 0, "simplified"),
        ("漢語和愛", 4, 0, 3, "traditional"),
        ("后里干面台了云着", 8, 0, 0, "neither"),  # written so in both, if for other words
        ("雪山", 2, 0, 0, "neither"),
        ("愛与恨", 3, 1, 1, "both"),
        ("a cow，牛\t\ufffd", 1, 0, 0, "neither"),
        (
            "𠀀㐀\uf900",
            2,
            0,
            0,
            "neither",
        ),  # what today's share of Chinese characters counts: no supplementary planes
        ("", 0, 0, 0, "neither"),
        ("\ud800牛", 1, 0, 0, "neither"),
    ],
)
def test_each_kind_of_character_is_counted(
    caption: str, chinese: int, simplified: int, traditional: int, script: str
) -> None:
    found = characters_of(["前", caption, "後"])
    counts = [found.chinese, found.simplified, found.traditional]
    assert [int(count[1]) for count in counts] == [chinese, simplified, traditional]
    assert found.length[1] == len(caption) and found.script()[1] == script
    assert [int(count[0]) for count in counts] == [1, 0, 0] and int(found.traditional[2]) == 1


def test_chinese_characters_are_those_of_three_blocks() -> None:
    captions = [chr(code) for code in range(0x20000)]
    found = characters_of(captions)
    cjk = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
    assert np.array_equal(found.chinese, [bool(cjk.match(caption)) for caption in captions])
    assert not characters_of([]).length.size
