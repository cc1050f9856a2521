"""IconPark: fetched and drawn as promised, its Chinese words kept, and all drawings of a title in one split."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from clip_core.config.sources import IconparkSource
from clip_core.data.sources import Harvest, iconpark_packages
from clip_core.data.sources.built_in import main as fetch
from clip_core.data.sources.iconpark import family_of
from clip_core.data.sources.npm_packages import pinned_packages
from tests.conftest import ROOT
from tests.harvested import harvested
from tests.npm_shelf import disc, open_shelf, pack

CACHE = ROOT / ".cache" / "iconpark"


def source(cache: Path, valid_percent: int | None = 10, test_percent: int | None = 10) -> IconparkSource:
    return IconparkSource(source="iconpark", path=str(cache), valid_percent=valid_percent, test_percent=test_percent)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache made of three tiny packages: the words of four icons, and two styles."""
    shelf = open_shelf(tmp_path, monkeypatch)
    words = [
        ("cat", "猫", ["宠物、动物", "猫", "logo"]),
        ("cat-one", "猫1", ["宠物"]),
        ("kitten", "猫\n", []),
        ("air-pods", "AirPods", ["耳机、"]),
    ]
    icons = [{"name": name, "title": title, "tag": tag, "categoryCN": "动物"} for name, title, tag in words]
    licence = {"title": "Apache 2.0", "spdx": "Apache-2.0", "url": "https://example.org"}
    info = {"name": "IconPark", "author": {"name": "A. N. Artist"}, "license": licence}
    styles = {
        "icon-park": {name: disc("blue") for name, *_ in words},
        "icon-park-solid": {"cat": disc("black"), "kitten": disc("black") | {"hidden": True}},
    }
    rows = [pack(shelf, "@icon-park/svg", {"icons.json": icons})]
    for style, drawn in styles.items():
        members = {"icons.json": {"width": 16, "height": 16, "icons": drawn}, "info.json": info}
        rows.append(pack(shelf, f"@iconify-json/{style}", members))
    (tmp_path / "packages.toml").write_text("\n".join(rows))
    monkeypatch.setattr(iconpark_packages, "TABLE", tmp_path / "packages.toml")
    fetch("iconpark", tmp_path / "cache")
    return tmp_path / "cache"


def test_an_icon_has_its_title_as_name_and_its_tags_as_keywords(cache: Path) -> None:
    found = harvested(source(cache))
    columns = ["image_id", "concept_id", "caption", "caption_kind", "language"]
    assert found.pairs[columns].to_numpy().tolist() == [
        ["icon-park/cat", "猫", "猫", "name", "zh"],
        ["icon-park/cat", "猫", "宠物", "keyword", "zh"],
        ["icon-park/cat", "猫", "动物", "keyword", "zh"],
        ["icon-park/cat", "猫", "logo", "keyword", "en"],
        ["icon-park/cat-one", "猫1", "猫1", "name", "zh"],
        ["icon-park/cat-one", "猫1", "宠物", "keyword", "zh"],
        ["icon-park/kitten", "猫", "猫", "name", "zh"],
        ["icon-park/air-pods", "AirPods", "AirPods", "name", "en"],
        ["icon-park/air-pods", "AirPods", "耳机", "keyword", "zh"],
        ["icon-park-solid/cat", "猫", "猫", "name", "zh"],
        ["icon-park-solid/cat", "猫", "宠物", "keyword", "zh"],
        ["icon-park-solid/cat", "猫", "动物", "keyword", "zh"],
        ["icon-park-solid/cat", "猫", "logo", "keyword", "en"],
    ]
    assert set(found.pairs["group"]) == {"动物"} and found.more == {"icons": 4, "titles": 3}
    images = dict(found.images)
    assert list(images) == sorted({*found.pairs["image_id"]})
    assert Image.open(io.BytesIO(images["icon-park/cat"])).size == (64, 64)


def test_without_percents_all_icons_are_trained_on() -> None:
    assert set(harvested(source(CACHE, None, None)).pairs["split"]) == {"train"}


def test_a_missing_cache_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not there\. Run `make setup`"):
        harvested(source(tmp_path))


def test_titles_that_differ_in_a_last_number_or_in_case_are_one_family() -> None:
    assert {family_of(title) for title in ("U盘", "U盘1", "u盘 2")} == {"u盘"}
    assert (family_of("F8"), family_of("3D眼镜"), family_of("404")) == ("f", "3d眼镜", "404")


@pytest.fixture(scope="module")
def built_in() -> Harvest:
    return harvested(source(CACHE))


def test_the_four_styles_of_2658_icons_are_there(built_in: Harvest) -> None:
    pictures = built_in.pairs.drop_duplicates("image_id")
    assert pictures["source"].value_counts().to_dict() == {
        "iconpark/icon-park": 2658,
        "iconpark/icon-park-outline": 2658,
        "iconpark/icon-park-solid": 1947,
        "iconpark/icon-park-twotone": 1944,
    }
    assert (built_in.pairs["concept_id"].nunique(), built_in.pairs["group"].nunique()) == (2300, 39)
    assert [image_id for image_id, _ in built_in.images] == sorted(pictures["image_id"])
    assert built_in.pairs["pair_id"].is_unique and not built_in.pairs.isna().any().any()


def test_all_drawings_of_a_title_are_in_one_split(built_in: Harvest) -> None:
    for column in ("concept_id", "family"):
        assert built_in.pairs.groupby(column)["split"].nunique().eq(1).all()
    titles = built_in.pairs.groupby("split")["concept_id"].nunique() / 2300
    assert titles["train"] > 0.75 and titles["valid"] > 0.08 and titles["test"] > 0.08


def test_a_larger_share_of_valid_moves_nothing_out_of_test(built_in: Harvest) -> None:
    other = harvested(source(CACHE, valid_percent=30)).pairs
    of_test = [set(pairs[pairs["split"] == "test"]["pair_id"]) for pairs in (built_in.pairs, other)]
    assert of_test[0] == of_test[1]


def test_the_notice_names_the_artwork_with_its_author_and_licence(built_in: Harvest) -> None:
    notice = (ROOT / "NOTICE").read_text()
    versions = {package.name: package.version for package in pinned_packages(iconpark_packages.TABLE)}
    artworks = json.loads((CACHE / "manifest.json").read_text())["artworks"]
    assert len(artworks) == 4 and set(built_in.pairs["licence"]) == {"Apache-2.0"}
    for style, about in artworks.items():
        package = f"@iconify-json/{style}"
        assert (
            f"{about['title']} (package {package} {versions[package]}, source iconpark/{style})\n"
            f"  by {about['author']['name']}, {about['author']['url']}\n"
            f"  {about['licence']['spdx']}, {about['licence']['url']}\n"
        ) in notice
    assert f"@icon-park/svg {versions['@icon-park/svg']}" in notice
