"""Vocabulary pruning: texts whose tokens are kept keep their features to the bit; the rest is counted."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from clip_core.model.contract import read_contract, weights_id
from clip_core.model.vocabulary import main, prune, read_captions
from clip_core.model.weights import load_weights, save_weights
from clip_core.text import build_tokenizer, load_tokenizer, tokenizer_of_vocabulary
from tests.tiny import MADE, tiny_clip

ALL = ["一只猫", "两只狗在跑", "天上的鸟", "hello world 2024", "hell", "world"]
KEPT = ["一只猫", "两只狗在跑", "hello world"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("vocabulary") / "weights", build_tokenizer(ALL)
    save_weights(tiny_clip(tokenizer), tokenizer, folder, MADE)
    return folder


def features(folder: Path, texts: list[str]) -> torch.Tensor:
    tokenizer = load_tokenizer(folder / "tokenizer.json", 16)
    with torch.inference_mode():
        return load_weights(folder).encode_texts(torch.from_numpy(tokenizer(texts)))


def test_texts_whose_tokens_are_kept_get_the_same_features_to_the_bit(folder: Path, tmp_path: Path) -> None:
    effect = prune(folder, tmp_path / "small", KEPT)

    texts = [*KEPT, "两只猫", "hello 狗"]  # of the same tokens
    assert torch.equal(features(folder, texts), features(tmp_path / "small", texts))
    assert not torch.equal(features(folder, ["鸟"]), features(tmp_path / "small", ["鸟"]))
    assert (effect.num_texts, effect.num_changed, effect.num_equal) == (3, 0, (3, 3))
    assert effect.cosines == ()


def test_the_counts_add_up(folder: Path, tmp_path: Path) -> None:
    effect = prune(folder, tmp_path / "small", KEPT)

    vocabulary = json.loads((tmp_path / "small" / "tokenizer.json").read_text())["model"]["vocab"]
    assert list(vocabulary) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"一两只在狗猫跑", "world", "hello"]
    assert list(vocabulary.values()) == list(range(13))
    before, after = load_weights(folder), load_weights(tmp_path / "small")
    assert effect.tokens == (before.architecture.text_tower.vocab_size, after.architecture.text_tower.vocab_size)
    assert effect.tokens[1] == 13
    width = before.text_tower.width
    for model, parameters, size in zip((before, after), effect.parameters, effect.bytes, strict=True):
        assert parameters == sum(p.numel() for p in model.parameters())
        assert size == sum(t.nbytes for t in model.state_dict().values())
    assert effect.parameters[0] - effect.parameters[1] == width * (effect.tokens[0] - 13)
    assert effect.bytes[0] - effect.bytes[1] == 4 * width * (effect.tokens[0] - 13)


def test_the_new_weights_say_where_they_come_from(folder: Path, tmp_path: Path) -> None:
    prune(folder, tmp_path / "small", KEPT)
    made = read_contract(tmp_path / "small").made
    assert (made.stage, made.parent) == ("vocabulary", weights_id(folder))
    num_tokens = read_contract(folder).architecture.text_tower.vocab_size
    assert made.text_tower == f"random start; 13 of {num_tokens} tokens kept"
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "model.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_rare_tokens_go_and_the_texts_that_had_them_are_counted(folder: Path, tmp_path: Path) -> None:
    effect = prune(folder, tmp_path / "small", ["一只猫"] * 3 + ["一只狗", "一只鸟"], min_count=2)
    assert (effect.num_texts, effect.num_changed, effect.num_equal) == (3, 2, (1, 1))
    assert len(effect.cosines) == 2
    assert all(-1 <= cosine < 1 for cosine in effect.cosines)
    assert "66.67% are split otherwise" in str(effect)
    assert "equal to the bit in 1 of 1 compared" in str(effect)


def test_a_vocabulary_like_berts_is_pruned_as_well(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "猫", "狗", "hel", "##lo", "##l", "##o"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    tokenizer = tokenizer_of_vocabulary(tmp_path / "vocab.txt")
    save_weights(tiny_clip(tokenizer), tokenizer, tmp_path / "weights", MADE)

    effect = prune(tmp_path / "weights", tmp_path / "small", ["hello 狗"], keep=["狗", "hel", "##l", "##o"])

    assert torch.equal(features(tmp_path / "weights", ["狗"]), features(tmp_path / "small", ["狗"]))
    small = load_tokenizer(tmp_path / "small" / "tokenizer.json", 16)
    assert small(["hello 狗"]).tolist() == [[2, 6, 7, 8, 5, 3]]  # hel ##l ##o, since ##lo is gone
    assert (effect.tokens, effect.num_changed) == ((12, 9), 1)


def test_captions_are_read_from_lines_and_tables(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("一只猫\n\n狗\n")
    pd.DataFrame({"caption": ["鸟", None]}).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("image,caption\n1.png,123\n")
    assert read_captions(tmp_path / "a.txt") == ["一只猫", "狗"]
    assert read_captions(tmp_path / "b.parquet") == ["鸟"]
    assert read_captions(tmp_path / "c.csv") == ["123"]
    (tmp_path / "d.csv").write_text("image,text\n1.png,123\n")
    with pytest.raises(ValueError, match=r"d\.csv: .*no column `caption`, but image, text"):
        read_captions(tmp_path / "d.csv")


def test_bad_input_is_refused_and_nothing_is_left_behind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 of the tokens to keep are not in .*'龙', '龟'"):
        prune(folder, tmp_path / "small", [], keep=["猫", "龟", "龙"])
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there exists already"):
        prune(folder, tmp_path / "there", KEPT)
    with pytest.raises(ValueError, match=r"not a weights folder: it has no model\.json"):
        prune(tmp_path / "none", tmp_path / "small", KEPT)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_tokenizer_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    del tree["model"]["vocab"]["[SEP]"]
    other = tmp_path / "other"
    save_weights(load_weights(folder), json.dumps(tree), other, MADE)
    with pytest.raises(ValueError, match="do not fit the weights"):
        prune(other, tmp_path / "small", KEPT)


def test_the_command_prunes_and_reports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(KEPT))
    command = ["vocabulary", str(folder), str(tmp_path / "small")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: nothing says what to keep")
    monkeypatch.setattr("sys.argv", [*command, "--captions", str(tmp_path / "captions.txt")])
    main()
    assert "0.00% are split otherwise" in capsys.readouterr().out
    assert read_contract(tmp_path / "small").architecture.text_tower.vocab_size == 13
