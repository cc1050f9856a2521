"""Every model of the family loads from its folder alone and encodes, in both precisions, on CPU and GPU."""

import gc
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import clip_core
from clip_core.model.costs import architecture_of
from clip_core.model.registry import VOCABULARY
from clip_core.model.weights import save_weights, without_weights
from clip_core.text import tokenizer_of_vocabulary
from tests.proofs.family import SLOW
from tests.tiny import MADE, picture

FAMILY = ("rn50", "vit-b-16", "vit-l-14", "vit-l-14-336", "vit-h-14")
NOISE = 2**20
pytestmark = pytest.mark.usefixtures("much_memory")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def random_weights(name: str, folder: Path) -> None:
    """The model `name` with the noise of a new one, made much faster: numbers repeat, and need no drawing."""
    model, noise = (
        without_weights(architecture_of(name)),
        torch.randn(NOISE, generator=torch.Generator().manual_seed(1)),
    )
    weights = {}
    for key, tensor in model.state_dict().items():
        if key == "logit_scale":
            weights[key] = torch.tensor(math.log(100))
        elif tensor.ndim < 2:  # norms, biases, statistics, counters
            value = 1 if key.endswith(("weight", "running_var")) else 0
            weights[key] = torch.full(tensor.shape, value, dtype=tensor.dtype)
        else:
            scale = math.prod(tensor.shape[1:]) ** -0.5
            weights[key] = (scale * noise).repeat(-(-tensor.numel() // NOISE))[: tensor.numel()].view(tensor.shape)
    model.load_state_dict(weights, assign=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"一只猫"]
    tokens += [f"[unused{i}]" for i in range(len(tokens), VOCABULARY)]
    vocabulary = folder.with_name("vocab.txt")
    vocabulary.write_text("\n".join(tokens), encoding="utf-8")
    save_weights(model, tokenizer_of_vocabulary(vocabulary), folder, MADE)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILY],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("family")
    random_weights(request.param, place / "made")
    gc.collect()
    moved = place / "elsewhere" / request.param  # a folder needs nothing of where it was made
    moved.parent.mkdir()
    shutil.move(place / "made", moved)
    yield moved
    shutil.rmtree(place)
    gc.collect()


def encode(folder: Path, device: str, precision: str) -> np.ndarray:
    """A text's and a picture's features, checked for what every model promises."""
    model = clip_core.load(folder, device=device, precision=precision)
    features = np.concatenate([model.encode_texts(["一只猫"]), model.encode_images([picture("red", "circle", "a")])])
    assert model.logit_scale == pytest.approx(100, rel=1e-5)
    assert features.shape == (2, architecture_of(folder.name).embed_dim)
    assert features.dtype == np.float32
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    return features


def test_each_loads_from_its_folder_alone_and_encodes_in_fp32_and_bf16(folder: Path) -> None:
    exact = encode(folder, "cpu", "fp32")
    gc.collect()
    rounded = encode(folder, "cpu", "bf16")
    gc.collect()
    assert ((exact * rounded).sum(axis=1) > (0.9999 if folder.name == "vit-b-16" else 0.99)).all()


@pytest.mark.gpu
@needs_gpu
def test_each_encodes_on_the_gpu_as_on_the_cpu(folder: Path) -> None:
    exact = encode(folder, "cpu", "fp32")
    assert np.abs(exact - encode(folder, "cuda", "fp32")).max() < 1e-4
    assert ((exact * encode(folder, "cuda", "bf16")).sum(axis=1) > 0.99).all()
