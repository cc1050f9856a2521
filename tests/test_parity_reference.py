"""Features against the references': the same weights give what `cn_clip` and `transformers` compute, for every kind of
text and picture. `pytest -s` prints the table of differences.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cn_clip import clip as cn_clip
from cn_clip.clip.model import CLIP as ReferenceCLIP
from PIL import Image
from torch.nn.functional import normalize

import clip_core
from clip_core.image import AS_RELEASED, pixels_of
from clip_core.inference.predictor import Predictor
from clip_core.model.pretrained.exporting import AS_IN_TRANSFORMERS, export_weights
from clip_core.model.pretrained.importing import import_checkpoint
from tests.odd_pictures import ODD
from tests.test_parity_tokens import CASES, VOCABULARY, reference

MAX_DIFFERENCE = 1e-5  # of a unit vector's numbers
IMAGE_SIZE = 64
BERT: dict[str, Any] = {
    "vocab_size": 21128,
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 128,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 512,
    "text_max_position_embeddings": 512,
    "text_num_attention_heads": 2,
    "text_num_hidden_layers": 3,
    "text_type_vocab_size": 2,
}
IMAGE_TOWERS: dict[str, dict[str, Any]] = {
    "ViT": {"vision_layers": 3, "vision_width": 128, "vision_patch_size": 16},
    "ResNet": {"vision_layers": [3, 4, 6, 3], "vision_width": 64, "vision_patch_size": None},
}


class Pair(NamedTuple):
    theirs: ReferenceCLIP
    folder: Path  # the same weights, imported
    ours: Predictor


def random_reference(tower: str) -> ReferenceCLIP:
    """A small model of the reference's own class; its weights are large enough for every input to matter."""
    torch.manual_seed(1)
    model = ReferenceCLIP(embed_dim=96, image_resolution=IMAGE_SIZE, **IMAGE_TOWERS[tower], **BERT).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name == "logit_scale":
                tensor.fill_(4.6)
            elif tensor.dim() > 1:
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():
                tensor.normal_(mean=float(name.endswith("weight")), std=0.1)  # of norms, and biases
        model.bert.embeddings.word_embeddings.weight.normal_()
    return model


@pytest.fixture(scope="module", params=IMAGE_TOWERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model of the reference, saved as the released ones are, and what our import makes of the file."""
    folder = tmp_path_factory.mktemp(request.param)
    model = random_reference(request.param)
    state_dict = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 15, "step": 0, "name": "job", "state_dict": state_dict}, folder / "clip_cn.pt")
    import_checkpoint(folder / "clip_cn.pt", folder / "weights", VOCABULARY, None)
    return Pair(model, folder / "weights", clip_core.load(folder / "weights", device="cpu"))


def token_ids(texts: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(reference(texts))


def normalised_pixels(pictures: Sequence[bytes]) -> torch.Tensor:
    prepare = cn_clip.image_transform(IMAGE_SIZE)
    return torch.stack([prepare(Image.open(io.BytesIO(picture))) for picture in pictures])


def check(title: str, names: Sequence[str], found: np.ndarray, true: torch.Tensor) -> None:
    """Prints the largest difference of every case and fails when one of them is too large."""
    wanted = normalize(true, dim=-1).numpy()
    assert wanted.std(axis=0).max() > 1000 * MAX_DIFFERENCE  # else any features would agree
    differences = np.abs(found - wanted).max(axis=1)
    for name, difference in zip(names, differences, strict=True):
        print(f"\n| {title} | {name} | {difference:.1e} |", end="")
    print(f"\n| {title} | all {len(names)} | {differences.max():.1e} |")
    assert differences.max() < MAX_DIFFERENCE


@pytest.mark.filterwarnings("ignore:texts longer than")
def test_texts_of_every_kind_have_the_references_features(pair: Pair) -> None:
    texts = list(CASES.values())
    with torch.inference_mode():
        true = pair.theirs.encode_text(token_ids(texts))
    check("texts, cn_clip", list(CASES), pair.ours.encode_texts(texts), true)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the reference
def test_pictures_of_every_kind_have_the_references_features(pair: Pair) -> None:
    pictures = [make() for make in ODD.values()]
    assert pair.ours.contract.preprocessing == AS_RELEASED
    with torch.inference_mode():
        true = pair.theirs.encode_image(normalised_pixels(pictures))
    kind = type(pair.theirs.visual).__name__
    check(f"pictures, cn_clip {kind}", list(ODD), pair.ours.encode_images(pictures), true)


def test_the_scale_of_similarities_is_the_references(pair: Pair) -> None:
    assert pair.ours.logit_scale == pytest.approx(pair.theirs.logit_scale.exp().item(), rel=1e-6)


@pytest.fixture
def exported(pair: Pair, tmp_path: Path) -> Path:
    """What our export makes of the imported weights for transformers."""
    if not hasattr(pair.theirs.visual, "transformer"):
        pytest.skip("transformers has no Chinese-CLIP with a ResNet")
    export_weights(pair.folder, tmp_path / "exported", "transformers")
    return tmp_path / "exported"


def test_what_transformers_sees_of_odd_pictures_is_known(exported: Path) -> None:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(exported, backend="pil")
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (AS_RELEASED.mean, AS_RELEASED.std))
    for name, make in ODD.items():
        seen = processor(Image.open(io.BytesIO(make())))["pixel_values"][0] * std + mean
        pixels = pixels_of(make(), IMAGE_SIZE, AS_IN_TRANSFORMERS)
        assert np.array_equal((np.asarray(seen) * 255).round(), pixels), name


@pytest.mark.filterwarnings("ignore:texts longer than", "ignore:Palette images with Transparency")
def test_transformers_computes_the_same_features(pair: Pair, exported: Path) -> None:
    from transformers import ChineseCLIPModel

    model = ChineseCLIPModel.from_pretrained(exported).eval()
    texts, pictures = list(CASES.values()), [make() for make in ODD.values()]
    ids = token_ids(texts)
    with torch.inference_mode():
        text_features = model.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
        image_features = model.get_image_features(pixel_values=normalised_pixels(pictures)).pooler_output
    check("texts, transformers", list(CASES), pair.ours.encode_texts(texts), text_features)
    check("pictures, transformers", list(ODD), pair.ours.encode_images(pictures), image_features)
