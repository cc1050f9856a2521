"""`clip_core.load`: what people type."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clip_core
from clip_core.config.model import ImageTower, Options
from clip_core.inference.fast import PackedLinear, can_pack
from clip_core.inference.first_token import keep_first_tokens
from clip_core.inference.predictor import Predictor
from clip_core.inference.torch_towers import FastTorchTowers, TorchTowers
from clip_core.model import precision
from clip_core.model.clip import make_clip
from clip_core.model.contract import Architecture, TextArchitecture, weights_id
from clip_core.model.weights import save_weights
from clip_core.text import build_tokenizer
from tests.tiny import MADE, encoded, picture, tiny_architecture, tiny_clip

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
    assert predictor.weights_id == weights_id(folder)
    assert predictor.tokenize(["一只猫", "猫"]).tolist()[1][-2:] == [0, 0]
    assert clip_core.load(str(folder)).weights_id == predictor.weights_id


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_tokenizer_of_another_model_is_refused_with_both_sizes(folder: Path, tmp_path: Path, runtime: str) -> None:
    shutil.copytree(folder, tmp_path / "weights")
    (tmp_path / "weights" / "tokenizer.json").write_text(build_tokenizer(["另一个"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json has 7 tokens, but the model .*model\.json knows 12: both"):
        clip_core.load(tmp_path / "weights", runtime=runtime)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


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
    for one in (good, Image.open(io.BytesIO(good))):
        with pytest.raises(TypeError, match="a list of pictures is wanted, not one"):
            predictor.encode_images(one)  # ty: ignore[invalid-argument-type]


def test_features_of_a_list_are_those_of_one_by_one(predictor: Predictor) -> None:
    texts = ["猫", "一只猫一只猫一只猫", "", "ok ok", "一只", "一只猫一只猫"] * 60  # sorted by length, in batches
    alone = {text: predictor.encode_texts([text])[0] for text in set(texts)}
    assert np.allclose(predictor.encode_texts(texts), [alone[text] for text in texts], atol=1e-6)


@pytest.mark.parametrize("width", [2, 4])
def test_a_width_is_cut_and_normalised_again(folder: Path, predictor: Predictor, width: int) -> None:
    with pytest.warns(UserWarning, match=f"width {width}: this model was trained for 8"):
        narrow = clip_core.load(folder, width=width)
    assert narrow.width == width
    for found, whole in [
        (narrow.encode_texts(TEXTS[:3]), predictor.encode_texts(TEXTS[:3])),
        (
            narrow.encode_images([picture("red", "circle", "a")]),
            predictor.encode_images([picture("red", "circle", "a")]),
        ),
    ]:
        cut = whole[:, :width]
        assert np.allclose(found, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)


def test_a_width_that_there_is_not_is_refused(folder: Path) -> None:
    for width in (0, -1, 9):
        with pytest.raises(ValueError, match=f"width {width}: features of this model have 1 to 8 numbers"):
            clip_core.load(folder, width=width)


def test_precision_is_fp32_unless_asked_and_auto_takes_what_the_device_is_good_at_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clip_core.load(folder).precision == "fp32"
    assert capsys.readouterr().err == ""
    for is_good_at_bf16, taken in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "_multiplies_bf16", lambda device, good=is_good_at_bf16: good)
        predictor = clip_core.load(folder, device="cpu", precision="auto")
        assert predictor.precision == taken
        assert f"precision={taken}" in repr(predictor)
        assert f"precision auto: {taken}, " in capsys.readouterr().err
    with pytest.raises(ValueError, match="precision 'fp16' is none of auto, fp32, bf16"):
        clip_core.load(folder, precision="fp16")


def test_a_device_that_there_is_not_is_named_with_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert clip_core.load(folder, device="auto").device == "cpu"
    with pytest.raises(ValueError, match=r"device 'cuda': torch .* finds 0 CUDA devices here; take device='cpu'"):
        clip_core.load(folder, device="cuda")
    with pytest.raises(ValueError, match="device 'tpu' is none of 'auto', 'cpu', 'cuda'"):
        clip_core.load(folder, device="tpu")


def packable_architecture(image_tower: str, options: Options, image_size: int) -> Architecture:
    """A model whose layers are large enough to be packed."""
    text = TextArchitecture(
        name="bert",
        options={
            "hidden_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "intermediate_size": 1024,
            "max_position_embeddings": 16,
        },
        vocab_size=50,
    )
    return tiny_architecture(build_tokenizer(["一只猫", "ok"])).model_copy(
        update={
            "image_tower": ImageTower(name=image_tower, options=options),
            "text_tower": text,
            "embed_dim": 64,
            "image_size": image_size,
        }
    )


VIT: Options = {"embed_dim": 512, "depth": 2, "num_heads": 8}


@pytest.mark.parametrize(
    ("options", "rewritten"), [({}, True), ({"qk_norm": True}, False), ({"global_pool": "avg"}, False)]
)
def test_the_last_layer_computes_the_first_token_alone_where_nothing_else_is_used(
    options: Options, rewritten: bool
) -> None:
    model = make_clip(packable_architecture("vit_base_patch16_clip_224", {**VIT, **options}, 64), seed=1).eval()
    image_tower: Any = model.image_tower
    encoder: Any = model.text_tower.encoder
    keep_first_tokens(model)
    with torch.inference_mode():
        assert image_tower.forward_features(torch.zeros(2, 3, 64, 64)).shape[1] == (1 if rewritten else 17)
        texts = encoder(input_ids=torch.ones(2, 3, dtype=torch.int64), attention_mask=torch.ones(2, 1, 3, 3).bool())
        assert texts.last_hidden_state.shape[1] == 1


@pytest.mark.parametrize(
    ("image_tower", "options", "image_size", "packs"),
    [
        ("vit_base_patch16_clip_quickgelu_224", VIT, 64, True),
        ("vit_base_patch16_clip_224", VIT, 64, True),  # exact GELU
        ("resnet50_clip", {}, 64, False),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, 64, False),
        ("beit_base_patch16_224", VIT, 64, True),  # reads the weights of a layer that it does not call
        ("vit_base_patch16_clip_224", {**VIT, "init_values": 0.1, "reg_tokens": 2}, 64, True),
        ("vit_base_patch16_clip_224", {**VIT, "qk_norm": True}, 64, True),
        ("vit_base_patch16_clip_224", {**VIT, "global_pool": "avg"}, 64, True),
    ],
)
def test_the_model_rewritten_for_speed_gives_the_same_features(
    image_tower: str, options: Options, image_size: int, packs: bool
) -> None:
    architecture = packable_architecture(image_tower, options, image_size)
    plain = TorchTowers(make_clip(architecture, seed=1).eval())
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (3, 3, image_size, image_size), dtype=np.uint8)
    token_ids = np.where(np.arange(9) < [[9], [4], [2]], draw.integers(1, 50, (3, 9)), 0)
    images, texts = plain.encode_images(pixels), plain.encode_texts(token_ids)
    for name, difference in (("fp32", 1e-5), ("bf16", None)):
        fast = FastTorchTowers(make_clip(architecture, seed=1).eval(), torch.device("cpu"), name)
        is_packed = any(isinstance(x, PackedLinear) for m in fast.model.image_tower.modules() for x in vars(m).values())
        assert is_packed == (packs and can_pack({"fp32": torch.float32, "bf16": torch.bfloat16}[name]))
        for found, true in ((fast.encode_images(pixels), images), (fast.encode_texts(token_ids), texts)):
            assert found.dtype == np.float32
            if difference:
                assert np.abs(found - true).max() < difference
            else:
                assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
                assert (found * true).sum(1).min() > 0.999


def test_features_in_bf16_are_of_length_1(folder: Path) -> None:
    predictor = clip_core.load(folder, device="cpu", precision="bf16")
    for features in (predictor.encode_texts(TEXTS[:3]), predictor.encode_images([picture("red", "circle", "a")])):
        assert features.dtype == np.float32
        assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
