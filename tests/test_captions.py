"""Training captions: sentences as they are, names and keywords in many forms."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_core.config.training import CaptionMix, Captions
from clip_core.data.captions import Described, draw_caption, texts_of
from clip_core.data.rows import COLUMNS, rows_of
from clip_core.text import build_tokenizer, parse_tokenizer
from tests.tiny import CHINESE, ENGLISH, tiny_store

CAT = Described(names=["猫"], keywords=["动物", "宠物", "喵", "毛"], group="动物与自然")


def drawn(described: str | Described, **mix: float) -> set[str]:
    shares = dict.fromkeys(CaptionMix.model_fields, 0.0) | mix
    params = CHINESE.model_copy(update={"mix": CaptionMix(**shares)})
    random = np.random.default_rng(0)
    return {draw_caption(described, params, random) for _ in range(300)}


def test_a_name_goes_into_every_template() -> None:
    assert drawn(CAT, templated_name=1.0) == {"猫", "一张猫的图片"}


def test_a_group_comes_before_the_name() -> None:
    assert drawn(CAT, group_and_name=1.0) == {"动物与自然：猫"}


def test_one_to_three_keywords_come_without_repetition() -> None:
    captions = [caption.split("，") for caption in drawn(CAT, keywords=1.0)]
    assert {len(words) for words in captions} == {1, 2, 3}
    assert all(len(set(words)) == len(words) and set(words) <= set(CAT.keywords) for words in captions)


def test_a_name_with_keywords_begins_with_the_name() -> None:
    assert all(re.fullmatch("猫(，[^，]+){1,2}", caption) for caption in drawn(CAT, name_and_keywords=1.0))


def test_the_shares_of_the_mix_are_kept() -> None:
    random = np.random.default_rng(0)
    captions = [draw_caption(CAT, CHINESE, random) for _ in range(2000)]
    assert abs(sum("：" in caption for caption in captions) / 2000 - 0.2) < 0.03
    assert (
        abs(sum("，" not in caption and caption.endswith(("猫", "图片")) for caption in captions) / 2000 - 0.6) < 0.03
    )


def test_a_sentence_is_used_as_it_is() -> None:
    assert drawn("猫，{}", templated_name=0.5, group_and_name=0.5) == {"猫，{}"}


def test_what_is_missing_falls_back_to_what_is_there() -> None:
    assert drawn(Described(names=["猫"]), keywords=0.4, name_and_keywords=0.3, group_and_name=0.3) == {
        "猫",
        "一张猫的图片",
    }
    assert drawn(Described(keywords=["喵"]), templated_name=1.0) == {"喵", "一张喵的图片"}


def test_the_vocabulary_is_made_of_captions_groups_templates_and_marks_of_the_language_alone() -> None:
    rows = [("zh", "猫", "动物"), ("zh", "猫", "宠物"), ("zh", "狗", None), ("en", "cow", "animals")]
    pairs = pd.DataFrame(rows, columns=["language", "caption", "group"])
    assert sorted(texts_of(pairs, CHINESE)) == sorted(["猫", "狗", "动物", "宠物", " ", "一张 的图片", "，", "："])


@pytest.mark.parametrize("params", [CHINESE, ENGLISH])
def test_the_vocabulary_covers_every_caption_that_can_be_drawn(tmp_path: Path, params: Captions) -> None:
    store = tiny_store(tmp_path / "store")
    tokenizer = parse_tokenizer(build_tokenizer(texts_of(store.pairs, params)), 64)
    random = np.random.default_rng(0)
    rows = rows_of(store.pairs_of([0], COLUMNS), params.language)
    captions = [draw_caption(described, params, random) for described in rows["caption"] for _ in range(20)]
    assert not (tokenizer(captions) == 1).any()  # [UNK]
