"""`clip_core.load`: what people type."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_core
from clip_core.model.contract import release_of
from clip_core.model.weights import save_weights
from clip_core.predictor import Predictor
from clip_core.text import build_tokenizer
from tests.tiny import MADE, encoded, picture, tiny_clip

TEXTS = ["一只猫", "", "ok", "一只猫" * 20, "猫", "没见过"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictor") / "weights"
    tokenizer = build_tokenizer(["一只猫", "ok"])
    save_weights(tiny_clip(tokenizer), tokenizer, folder, MADE)
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return clip_core.load(folder)


@pytest.mark.filterwarnings("ignore:texts longer")
def test_texts_and_pictures_become_unit_vectors_in_the_order_given(predictor: Predictor) -> None:
    texts = predictor.encode_texts(TEXTS)
    images = [picture("red", "circle", "a"), Image.new("L", (9, 5)), picture("blue", "square", "b")]
    pictures = predictor.encode_images(images)

    for features, alone in [
        (texts, [predictor.encode_texts([text])[0] for text in TEXTS]),
        (pictures, [predictor.encode_images([image])[0] for image in images]),
    ]:
        assert features.dtype == np.float32
        assert features.shape == (len(alone), 8)
        assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
        assert np.allclose(features, np.stack(alone), atol=1e-6)


def test_many_go_through_in_batches(predictor: Predictor) -> None:
    texts = predictor.encode_texts(["猫", "一只猫"] * 200)
    images = predictor.encode_images([picture("red", "circle", "a")] * 150)
    assert np.allclose(texts, np.tile(texts[:2], (200, 1)), atol=1e-6)
    assert np.allclose(images, images[:1], atol=1e-6)


def test_nothing_gives_no_rows(predictor: Predictor) -> None:
    assert predictor.encode_texts([]).shape == (0, 8)
    assert predictor.encode_images([]).shape == (0, 8)


def test_a_picture_and_its_bytes_give_the_same_features(predictor: Predictor) -> None:
    image = Image.new("RGBA", (30, 20), (10, 200, 30, 128))
    assert np.array_equal(predictor.encode_images([image]), predictor.encode_images([encoded(image)]))


def test_it_tells_its_scale_its_contract_and_its_release(folder: Path, predictor: Predictor) -> None:
    assert abs(predictor.logit_scale - 1 / 0.07) < 1e-4  # exponentiated
    assert predictor.contract.embed_dim == 8
    assert predictor.release == release_of(folder)
    assert predictor.tokenize(["一只猫", "猫"]).tolist()[1][-2:] == [0, 0]
    assert clip_core.load(str(folder)).release == predictor.release


def test_a_wrong_item_is_named(predictor: Predictor) -> None:
    good = picture("red", "circle", "a")
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, not bytes"):
        predictor.encode_texts(["猫", b"x"])  # ty: ignore[invalid-argument-type]
    with pytest.raises(TypeError, match="a list of texts is wanted"):
        predictor.encode_texts("猫")
    with pytest.raises(ValueError, match=r"images\[1\]: not a picture"):
        predictor.encode_images([good, b"broken"])
    with pytest.raises(TypeError, match=r"images\[2\]: .* not str"):
        predictor.encode_images([good, good, "cat.png"])  # ty: ignore[invalid-argument-type]
