"""One preprocessing everywhere: what the Predictor sees of an odd picture is what training, export and Triton see."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import clip_core
from clip_core.data.pictures import decoded
from clip_core.data.store import Store, StoreWriter, open_store
from clip_core.image import AS_RELEASED, AS_SEEN, Preprocessing, pixels_of
from clip_core.inference.onnx_towers import pixels_of_store
from clip_core.inference.predictor import Predictor
from clip_core.model.clip import make_clip
from clip_core.model.contract import read_contract
from clip_core.model.weights import load_weights, save_weights
from clip_core.serve.install import triton_home
from clip_core.text import load_tokenizer, tokenizer_of_vocabulary
from tests.conftest import ENVIRONMENT, ROOT
from tests.odd_pictures import ODD
from tests.test_parity_tokens import CASES, VOCABULARY
from tests.tiny import MADE, tiny_architecture, tiny_store

# What Triton's Python stub does at a request, in the stub's environment (numpy 1), without its server.
STUB = """
import json, sys, types
from pathlib import Path
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
import numpy as np
from clip_core.serve import triton_models
from clip_core.serve.triton_models import ImagePreprocess, TextPreprocess

triton_models.check_numbers = lambda: None  # that of a server: tests/test_triton.py
repository, pictures, texts, out = map(Path, sys.argv[1:])
images, words = ImagePreprocess(), TextPreprocess()
for model in (images, words):
    model.initialize({"model_repository": str(repository), "model_version": "1"})
np.save(out / "pixels.npy", images._pixels([file.read_bytes() for file in sorted(pictures.iterdir())]))
np.save(out / "token_ids.npy", words._token_ids([text.encode() for text in json.loads(texts.read_text())]))
"""
TEXTS = [text for name, text in CASES.items() if name not in ("half an emoji", "empty", "blank", "meaningless")]


class Served(NamedTuple):
    pictures: list[bytes]
    model: Path
    predictor: Predictor
    pixels: np.ndarray  # by the stub
    token_ids: np.ndarray  # by the stub


@pytest.fixture(scope="module", params=[AS_SEEN, AS_RELEASED], ids=["as seen", "as released"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model with this preprocessing, and what the stub makes of the odd pictures and texts for it."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer_json = tokenizer_of_vocabulary(VOCABULARY)
    architecture = tiny_architecture(tokenizer_json).model_copy(update={"preprocessing": request.param})
    model = folder / "repository" / "1"
    save_weights(make_clip(architecture, seed=1), tokenizer_json, model, MADE)
    (model / "release.txt").write_text("0\n")
    (folder / "pictures").mkdir()
    pictures = [make() for make in ODD.values()]
    for number, picture in enumerate(pictures):
        (folder / "pictures" / f"{number:02}").write_bytes(picture)
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    python = triton_home() / "environment" / "bin" / "python"
    paths = (folder / "repository", folder / "pictures", folder / "texts.json", folder)
    subprocess.run([python, "-c", STUB, *paths], cwd=ROOT, env=ENVIRONMENT, check=True)
    pixels, token_ids = np.load(folder / "pixels.npy"), np.load(folder / "token_ids.npy")
    return Served(pictures, model, clip_core.load(model, device="cpu"), pixels, token_ids)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A packed split of the odd pictures."""
    folder = tmp_path_factory.mktemp("odd")
    names = sorted(ODD)
    writer = StoreWriter(folder / "odd", 2**20)
    for name in names:
        writer.add(name, ODD[name]())
    pairs = tiny_store(folder / "tiny").pairs.head(len(names))
    writer.finish(pairs.assign(image_id=names, image_sha256=writer.sums))
    return open_store(folder / "odd")


def preprocessing_of(served: Served) -> Preprocessing:
    return served.predictor.contract.preprocessing


def test_triton_sees_the_pixels_that_the_predictor_sees(served: Served) -> None:
    for name, picture, pixels in zip(ODD, served.pictures, served.pixels, strict=True):
        assert np.array_equal(pixels_of(picture, 32, preprocessing_of(served)), pixels), name


def test_triton_gives_the_features_that_the_predictor_gives(served: Served) -> None:
    with torch.inference_mode():
        features = load_weights(served.model).encode_images(torch.from_numpy(served.pixels))
    assert np.abs(served.predictor.encode_images(served.pictures) - features.numpy()).max() < 1e-6


@pytest.mark.filterwarnings("ignore:texts longer than")
def test_triton_reads_texts_as_the_predictor_does(served: Served) -> None:
    tokenizer = load_tokenizer(served.model / "tokenizer.json", served.predictor.contract.context_length)
    assert np.array_equal(served.token_ids, tokenizer(TEXTS))


def test_training_and_export_see_them_too(served: Served, store: Store) -> None:
    contract = read_contract(served.model)
    expected = np.stack([pixels_of(ODD[name](), 32, contract.preprocessing) for name in store.image_ids])
    in_training = decoded(store, contract.image_size, contract.preprocessing)(np.arange(len(store)))
    assert np.array_equal(in_training.numpy(), expected)
    assert np.array_equal(np.concatenate(list(pixels_of_store(store, contract))), expected)


def test_the_two_preprocessings_differ_where_the_pictures_are_odd() -> None:
    differ = {
        name
        for name, make in ODD.items()
        if (pixels_of(make(), 32, AS_SEEN) != pixels_of(make(), 32, AS_RELEASED)).any()
    }
    assert {"P", "RGBA, PNG", "LA", "1", "I;16", "EXIF 6, JPEG"} < differ < set(ODD)


def test_a_broken_picture_is_named(served: Served, tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "broken", 2**20)
    writer.add("whole", served.pictures[0])
    writer.add("worn", served.pictures[0][:300])
    writer.finish(
        tiny_store(tmp_path / "tiny").pairs.head(2).assign(image_id=["whole", "worn"], image_sha256=writer.sums)
    )
    store, contract = open_store(tmp_path / "broken"), read_contract(served.model)
    with pytest.raises(ValueError, match=r"images\[1\]: broken picture"):
        served.predictor.encode_images([store.image_bytes(0), store.image_bytes(1)])
    assert list(decoded(store, 32, contract.preprocessing).broken) == [1]  # training goes on without it
    with pytest.raises(ValueError, match="picture worn: broken picture"):
        list(pixels_of_store(store, contract))
