"""What a row of training is, and which rows are of one kind."""

from pathlib import Path

import pandas as pd
import pytest

from clip_core.data.captions import Described
from clip_core.data.rows import COLUMNS, count_rows, kinds_of, rows_of
from tests.sentences import many, row, sentence_store
from tests.tiny import tiny_store


def rows(*pairs: dict) -> pd.DataFrame:
    table = pd.DataFrame(pairs)
    return rows_of(table.assign(image_index=pd.factorize(table["image_id"])[0]), "zh")


def test_each_pair_of_a_sentence_is_a_row(tmp_path: Path) -> None:
    store = sentence_store(tmp_path / "made", many(3, 4))
    found = rows_of(store.pairs_of([2, 0], COLUMNS), "zh")
    wanted = store.pairs[store.pairs["image_id"].str[:2].isin(["00", "02"])]
    assert sorted(found["caption"]) == sorted(wanted["caption"])
    assert store.ids_of(found["image"].tolist()) == sorted(wanted["image_id"])
    assert count_rows(store, "zh") == (7, 7, 7)


def test_a_picture_of_names_and_keywords_is_one_row(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store")
    chinese, english = (rows_of(store.pairs_of([0], COLUMNS), language) for language in ("zh", "en"))
    red = store.image_ids.index("a-red-circle")
    assert chinese["caption"][red] == Described(["红色圆形"], ["红色", "圆形"], "图形")
    assert english["caption"][red] == Described(["red circle"], ["red"], "图形")
    assert chinese["image"].tolist() == list(range(36))
    assert count_rows(store, "en") == (36,)


def test_a_picture_with_a_sentence_is_known_by_its_sentences_alone() -> None:
    found = rows(
        row("a", 0, "一只猫坐着"), row("a", 1, "猫", "name"), row("b", 0, "狗", "name"), row("c", 0, "x", language="en")
    )
    assert found["caption"].tolist() == ["一只猫坐着", Described(["狗"], [], None)]


def test_what_is_in_another_language_is_left_out_and_none_at_all_is_refused(tmp_path: Path) -> None:
    store = sentence_store(tmp_path / "made", many(2, 4))
    with pytest.raises(ValueError, match=r"no captions in language 'en': .* one of \['zh'\]"):
        count_rows(store, "en")


def test_rows_that_share_a_picture_a_caption_a_concept_or_a_look_are_of_one_kind_and_so_are_their_friends() -> None:
    found = rows(
        row("a", 0, "一"),
        row("a", 1, "二"),  # the picture
        row("b", 0, "二"),  # the caption
        row("c", 0, "三", near_duplicate_group="b"),  # the look
        row("d", 0, "四", concept_id="k"),
        row("e", 0, "五", concept_id="k"),  # the concept
        row("f", 0, "五", concept_id="other"),  # the caption, though the concept is another
        row("g", 0, "六"),
    )
    kinds = kinds_of(found).tolist()
    assert kinds[:4] == [kinds[0]] * 4
    assert kinds[4] == kinds[5] == kinds[6]
    assert len(set(kinds)) == 3


def test_pictures_of_names_are_told_apart_by_their_concept_or_else_their_name_and_look() -> None:
    found = rows(
        row("a", 0, "猫", "name", concept_id="cat"),
        row("b", 0, "虎", "name", concept_id="tiger", near_duplicate_group="a"),
        row("c", 0, "猫", "name", concept_id="cat"),
        row("d", 0, "鼠", "name"),
        row("e", 0, "鼠", "name"),
        row("f", 0, "牛", "name", near_duplicate_group="e"),
    )
    assert kinds_of(found).tolist()[:3] == [0, 1, 0]
    assert len(set(kinds_of(found)[3:])) == 1
