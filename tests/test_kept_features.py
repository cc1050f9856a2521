"""Features are computed once for each content, and a computation that was killed goes on where it had saved."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clip_core.data import feature_file
from clip_core.errors import UserError
from clip_core.inference import features
from clip_core.inference.features import Shelf, image_features, shelves_of, text_features
from clip_core.inference.predictor import Predictor, load
from clip_core.kept import KEPT
from tests.made_benchmarks import pictures, write_model
from tests.tiny import tiny_store

PICTURES = pictures(0, 10)


@pytest.fixture
def predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "READ_AT_ONCE", 4)
    monkeypatch.setattr(feature_file, "SAVES_EVERY", 0.0)
    return load(write_model(tmp_path / "model"), device="cpu")


def shelf(images: list[bytes], key: str = "0") -> Shelf:
    return Shelf(key, [f"p{i}" for i in range(len(images))], partial(iter, images))


def nothing_is_encoded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(predictor.towers, "encode_images", refuse)
    monkeypatch.setattr(predictor.towers, "encode_texts", refuse)


def test_they_are_the_predictor_s_and_are_not_computed_again(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = image_features(predictor, [shelf(PICTURES[:3], "a"), shelf(PICTURES[3:], "b")])
    texts = text_features(predictor, ["一只猫", "红色的苹果"])
    np.testing.assert_allclose(found, predictor.encode_images(PICTURES), atol=1e-6)
    np.testing.assert_array_equal(texts, predictor.encode_texts(["一只猫", "红色的苹果"]))
    nothing_is_encoded(predictor, monkeypatch)
    np.testing.assert_array_equal(image_features(predictor, [shelf(PICTURES[3:], "b"), shelf([], "c")]), found[3:])
    np.testing.assert_array_equal(text_features(predictor, ["一只猫", "红色的苹果"]), texts)


def test_another_model_or_other_pictures_have_others(predictor: Predictor, tmp_path: Path) -> None:
    found = image_features(predictor, [shelf(PICTURES)])
    other = load(write_model(tmp_path / "other", seed=2), device="cpu")
    assert not np.allclose(image_features(other, [shelf(PICTURES)]), found)
    assert not np.allclose(image_features(predictor, [shelf(PICTURES[::-1], "1")]), found)


def test_a_killed_computation_goes_on_after_what_it_saved(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predictor.encode_images(PICTURES)
    real, seen = predictor.towers.encode_images, []

    def killed(pixels: np.ndarray) -> np.ndarray:
        seen.append(len(pixels))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(pixels)

    monkeypatch.setattr(predictor.towers, "encode_images", killed)
    with pytest.raises(KeyboardInterrupt):
        image_features(predictor, [shelf(PICTURES)])
    assert seen == [4, 4, 2]
    np.testing.assert_allclose(image_features(predictor, [shelf(PICTURES)]), expected, atol=1e-6)
    assert seen == [4, 4, 2, 2]  # the last two alone


def test_damaged_features_are_made_again(predictor: Predictor, capsys: pytest.CaptureFixture[str]) -> None:
    found = image_features(predictor, [shelf(PICTURES)])
    (file,) = KEPT.glob("features/*/features.npy")
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    np.testing.assert_array_equal(image_features(predictor, [shelf(PICTURES)]), found)
    assert "torn or damaged" in capsys.readouterr().out


def test_a_broken_picture_is_named(predictor: Predictor) -> None:
    with pytest.raises(UserError, match=r"picture p6: .*Take it from the benchmark's source again"):
        image_features(predictor, [shelf([*PICTURES[:6], b"no picture", *PICTURES[6:]])])


def test_a_packed_split_lies_on_shelves_in_its_own_order(predictor: Predictor, tmp_path: Path) -> None:
    with tiny_store(tmp_path / "store") as store:
        shelves = shelves_of(store)
        assert [image_id for one in shelves for image_id in one.image_ids] == store.image_ids
        expected = predictor.encode_images([store.image_bytes(i) for i in range(len(store))])
        np.testing.assert_allclose(image_features(predictor, shelves), expected, atol=1e-6)
