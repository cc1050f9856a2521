"""The tokenizer: Chinese by the character, other scripts by the word, one path for all uses."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from clip_core.text import Tokenizer, build_tokenizer, load_tokenizer, parse_tokenizer, tokenizer_of_vocabulary

CAPTIONS = ["一只猫", "猫脸", "OK手势", "ATM 机", "组词：名，", '"引"', "don't", "1号"]
LONGEST = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return parse_tokenizer(build_tokenizer(CAPTIONS), LONGEST)


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    names = {i: token for token, i in tokenizer._backend.get_vocab().items()}
    return [names[i] for i in tokenizer([text])[0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一只猫", ["一", "只", "猫"]),
        ("猫", ["猫"]),
        ("", []),
        ("   ", []),
        ("OK手势", ["ok", "手", "势"]),
        ("ＯＫ，猫", ["ok", ",", "猫"]),  # full-width letters and marks are the plain ones
        ("“猫”", ['"', "猫", '"']),  # curly quotes
        ("atm猫", ["atm", "猫"]),
        ("mat", ["m", "##a", "##t"]),  # a word never seen is spelt
        ("café", ["[UNK]"]),  # f was never seen
        ("𠮷猫", ["[UNK]", "猫"]),
        ("[SEP]猫", ["[UNK]", "[UNK]", "[UNK]", "猫"]),  # people can not type special tokens
    ],
)
def test_chinese_is_split_into_characters_and_other_scripts_into_words(
    tokenizer: Tokenizer, text: str, expected: list[str]
) -> None:
    assert tokens(tokenizer, text) == ["[CLS]", *expected, "[SEP]"]


def test_texts_are_padded_with_zero_to_the_longest(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer(["一只猫", "猫", ""])

    assert token_ids.shape == (3, 5)
    assert token_ids.dtype == np.int64
    assert [(row != 0).sum() for row in token_ids] == [5, 3, 2]


def test_no_texts_give_no_rows(tokenizer: Tokenizer) -> None:
    assert len(tokenizer([])) == 0


def test_a_text_too_long_is_cut_counted_and_warned_of_once() -> None:
    tokenizer = parse_tokenizer(build_tokenizer(CAPTIONS), LONGEST)

    with pytest.warns(UserWarning, match="longer than 16 tokens"):
        token_ids = tokenizer(["猫", "猫" * 60])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["猫" * 60, "猫" * 14])

    assert token_ids.shape == (2, LONGEST)
    assert token_ids[1, -1] == token_ids[0, 2]  # [SEP] stays at the end
    assert tokenizer.num_truncated == 2


def test_a_predictor_tells_how_many_texts_were_cut(tmp_path: Path) -> None:
    import clip_core
    from clip_core.model.weights import save_weights
    from tests.tiny import MADE, tiny_clip

    tokenizer_json = build_tokenizer(CAPTIONS)
    save_weights(tiny_clip(tokenizer_json), tokenizer_json, tmp_path / "weights", MADE)
    predictor = clip_core.load(tmp_path / "weights")

    with pytest.warns(UserWarning, match="texts longer than 16 tokens are cut off, the first: '猫猫猫"):
        predictor.encode_texts(["猫", "猫" * 60, "猫" * 15])

    assert predictor.num_truncated == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [("一只猫", "not one text"), (["猫", 3], r"texts\[1\] must be a str, not int"), ([None], "NoneType")],
)
def test_what_is_no_list_of_texts_is_refused_by_name(tokenizer: Tokenizer, texts: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tokenizer(texts)  # ty: ignore[invalid-argument-type]


def test_the_order_of_the_captions_does_not_matter() -> None:
    assert build_tokenizer(CAPTIONS) == build_tokenizer(reversed(CAPTIONS + CAPTIONS))


def test_a_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(build_tokenizer(CAPTIONS))

    texts = [*CAPTIONS, "没见过的字 unseen words"]
    assert np.array_equal(load_tokenizer(path, LONGEST)(texts), tokenizer(texts))


def test_a_bert_vocabulary_splits_as_transformers_does(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    vocabulary = tmp_path / "vocab.txt"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "一",
        "只",
        "猫",
        "cafe",
        "hello",
        "##lo",
        "hel",
        "1",
        "##2",
        ",",
        "，",
    ]
    vocabulary.write_text("\n".join(words) + "\n")
    reference = BertTokenizer(str(vocabulary))
    tokenizer = parse_tokenizer(tokenizer_of_vocabulary(vocabulary), LONGEST)

    for text in ["一只猫", "Café 猫", "hello helLo hel", "12,一", "狗，猫", "", "猫" * 14]:
        assert tokenizer([text])[0].tolist() == reference(text)["input_ids"], text


@pytest.mark.parametrize("content", ["", "猫\n[UNK]\n", "[UNK]\n[CLS]\n[SEP]\n[PAD]\n"])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a BERT vocabulary"):
        tokenizer_of_vocabulary(path)


def test_a_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(path, LONGEST)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(path, LONGEST)
