"""Stage 1 without the image tower: its features are computed once, whoever asks, and train what the tower itself would.

`affine` with nothing but zeros is an augmentation that changes nothing: with it the tower runs live.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_core import kept
from clip_core.code import Reached
from clip_core.config.loader import IN_PROCESS, Loader
from clip_core.config.stage1 import Stage1
from clip_core.config.training import AffineAugmentation, Augmentation, NoAugmentation
from clip_core.data import feature_file
from clip_core.data.augmentation import augment
from clip_core.data.batches import TrainingBatches
from clip_core.data.pictures import AsNeeded, Stored
from clip_core.data.sampler import random_at
from clip_core.data.store import Store, join_stores, open_store
from clip_core.image import Preprocessing
from clip_core.model.clip import CLIP
from clip_core.model.contract import Contract
from clip_core.model.weights import save_weights
from clip_core.params_file import read_yaml
from clip_core.recipe import merged
from clip_core.text import build_tokenizer, parse_tokenizer
from clip_core.train import feature_cache
from clip_core.train.feature_cache import View, image_features_of
from clip_core.train.loop import train
from clip_core.train.setup import Setup
from clip_core.train.warm_start import take_image_side
from tests.conftest import ENVIRONMENT, ROOT
from tests.sentences import many, sentence_store
from tests.stage_calls import call
from tests.tiny import (
    IMAGE_SIZE,
    INTERVAL,
    MADE,
    tiny_clip,
    tiny_store,
    tiny_tokenizer_json,
    tiny_training,
)
from tests.variants import vit_clip

NONE = NoAugmentation(name="none")
LIVE = AffineAugmentation(name="affine", scale=0.0, rotate=0.0, shift=0.0, brightness=0.0)
CHANGED = tiny_training().augmentation
BATCH = 12  # the 36 pictures are three times as many
WORN = "01-004"
MakeModel = Callable[[str], CLIP]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("features") / "store")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three shards of 20 pictures, of which one is broken."""
    return sentence_store(tmp_path_factory.mktemp("shards") / "made", many(3, 20), broken=[WORN])


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the image tower has been given, call after call."""
    calls: list[int] = []
    real = CLIP.encode_images
    monkeypatch.setattr(CLIP, "encode_images", lambda self, rows: calls.append(len(rows)) or real(self, rows))
    return calls


def stage1(augmentation: Augmentation = NONE, num_views: int | None = None, **changes: object) -> Stage1:
    values = {"augmentation": augmentation, "global_batch": BATCH, "num_views": num_views, **changes}
    return Stage1.model_validate(dict(tiny_training(num_steps=8)) | values)


def trained(store: Store, work: Path, params: Stage1, make: MakeModel = vit_clip, seed: int = 1) -> dict[str, Tensor]:
    """The weights that stage 1 makes of a tiny model."""
    tokenizer_json = tiny_tokenizer_json(store)
    model = make(tokenizer_json)
    setup = Setup(params, seed, is_image_tower_frozen=True, num_views=params.num_views)
    pictures = setup.pictures(store, Contract(architecture=model.architecture, made=MADE))
    images, encode = setup.prepare(model, pictures, IN_PROCESS)
    with TrainingBatches(store, images, parse_tokenizer(tokenizer_json, 16), params, seed) as batches:
        train(batches, model, encode, work, INTERVAL)
    return model.state_dict()


def stored(store: Store, model: CLIP | None = None, precision: str = "fp32", **changes: object) -> Stored:
    """The features of all pictures; `changes` are those of how they are read."""
    read = {"image_size": IMAGE_SIZE, "preprocessing": Preprocessing(), "decoding": "exact"} | changes
    return image_features_of(model or tiny_clip(), AsNeeded(store, **read), precision)  # ty: ignore[invalid-argument-type]


def rows_of(features: Stored) -> Tensor:
    """All of them: (pictures, views, embed_dim)."""
    return features(np.arange(sum(len(np.load(files[0])) for files in features.files)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_views", [None, 2])
@pytest.mark.parametrize("make", [tiny_clip, vit_clip])
def test_cached_and_live_train_the_same_weights(
    make: MakeModel,
    num_views: int | None,
    precision: str,
    store: Store,
    project: Path,
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, where the tower gets as many pictures at a time as in a step.

    With another number it may multiply in another order: of a tiny model all bits stay, and weights within rounding.
    """
    live = trained(store, project / "live" / "run", stage1(LIVE, precision=precision), make)
    assert encoded == 8 * [BATCH]
    for at_once, tolerance in ((BATCH, 0.0), (7, 1e-4)):
        monkeypatch.setattr(feature_cache, "AT_ONCE", at_once)
        encoded.clear()
        params = stage1(LIVE if num_views else NONE, num_views, precision=precision)
        cached = trained(store, project / f"cached-{at_once}" / "run", params, make)
        assert sum(encoded) == 36 * (num_views or 1)
        for name, wanted in live.items():
            torch.testing.assert_close(cached[name], wanted, rtol=0, atol=tolerance, msg=name)
        shutil.rmtree(kept.KEPT)


def test_another_seed_schedule_and_language_of_texts_have_nothing_encoded_again(
    store: Store, project: Path, encoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    params = stage1()
    first = trained(store, project / "first" / "run", params)
    assert sum(encoded) == 36
    encoded.clear()
    longer = params.model_copy(update={"schedule": params.schedule.model_copy(update={"num_steps": 10})})
    others = [trained(store, project / str(seed) / "run", longer, seed=seed) for seed in (2, 3)]
    assert not encoded
    assert capsys.readouterr().out.count("36 pictures were encoded before") == 2
    assert all(not torch.equal(first["text_projection.weight"], other["text_projection.weight"]) for other in others)


def test_the_stage_itself_reads_no_picture_of_train_once_they_are_encoded(
    store: Store, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer_json = tiny_tokenizer_json(store)
    save_weights(tiny_clip(tokenizer_json), tokenizer_json, project / "start", MADE)
    (project / "packed").mkdir()
    (project / "packed" / "train").symlink_to(store.folder)
    tiny_store(project / "packed" / "valid")
    real, read = Store.image_bytes, []
    monkeypatch.setattr(Store, "image_bytes", lambda self, i: read.append(self.folder.name) or real(self, i))
    small = {"schedule": {"num_steps": 2, "warmup_steps": 1}, "global_batch": 8}
    for seed, augmentation, num_views, num_read in ((1, NONE, None, 36), (2, NONE, None, 0), (2, CHANGED, 2, 72)):
        changed = small | {"augmentation": augmentation.model_dump(), "num_views": num_views}
        tree = merged(read_yaml(ROOT / "params.yaml"), {"seed": seed, "stage1": changed})
        (project / "params.yaml").write_text(json.dumps(tree), encoding="utf-8")
        read.clear()
        call(
            "stage1",
            project / "params.yaml",
            project / "packed",
            project / "start",
            project / "out",
            project / "curves",
        )
        assert (read.count("train"), read.count("valid")) == (num_read, 36)
        is_kept = "36 pictures were encoded before" in capsys.readouterr().out
        assert is_kept == (num_read == 0)


def with_changed(model: CLIP, name: str) -> CLIP:
    """The model with another number in one of its tensors."""
    model.state_dict()[name].view(-1)[0] += 1
    return model


def test_what_decides_the_features_has_others_encoded_and_what_does_not_has_not(
    store: Store, shards: Store, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_other_texts = tiny_clip(build_tokenizer(["another", "vocabulary"]))
    take_image_side(with_other_texts, tiny_clip())
    stored(store)
    encoded.clear()
    same: list[Callable[[], object]] = [
        lambda: stored(store),
        lambda: stored(store, with_changed(tiny_clip(), "text_projection.weight")),
        lambda: stored(store, with_changed(tiny_clip(), "logit_scale")),
        lambda: stored(store, with_other_texts),
    ]
    for features in same:
        features()
        assert not encoded
    others: list[Callable[[], object]] = [
        lambda: stored(store, with_changed(tiny_clip(), "image_projection.weight")),
        lambda: stored(store, with_changed(tiny_clip(), "image_tower.bn1.running_mean")),
        lambda: stored(store, decoding="scaled"),
        lambda: stored(store, preprocessing=Preprocessing(background="dropped")),
        lambda: stored(store, precision="bf16"),
        lambda: stored(shards),
    ]
    for number, features in enumerate(others, start=1):
        features()
        assert sum(encoded) == 36 * min(number, 5) + 60 * (number == 6)
    now = feature_cache.reached_by(feature_cache.__name__)
    for what, another in (
        ("reached_by", Reached(now.code | {"clip_core.image": "another"}, now.versions)),
        ("reached_by", Reached(now.code, now.versions | {"timm": "0.1"})),
        ("kind_of", "cpu of another kind"),
    ):
        encoded.clear()
        with monkeypatch.context() as patched:
            patched.setattr(feature_cache, what, lambda _, another=another: another)
            stored(store)
        assert sum(encoded) == 36


def test_a_new_shard_is_the_only_one_that_is_encoded(shards: Store, project: Path, encoded: list[int]) -> None:
    for name in ("000", "002"):  # copies: LMDB opens a file once, by whatever link
        shutil.copytree(shards.folder.parent / name, project / name)
    join_stores({name: project / name for name in ("000", "002")}, project / "two")
    two = stored(open_store(project / "two"))
    assert sum(encoded) == 40
    three = stored(shards)
    assert sum(encoded) == 60
    assert torch.equal(rows_of(two), rows_of(three)[[*range(20), *range(40, 60)]])
    some = np.array([59, 0, 20, 19, 40, 0])
    assert torch.equal(three(some), rows_of(three)[some])


def test_a_broken_picture_stays_known_without_a_look_at_any(
    shards: Store, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shards.image_ids.index(WORN)
    first = stored(shards)
    monkeypatch.setattr(Store, "image_bytes", lambda *_: pytest.fail("a picture was read"))
    again = stored(shards)
    assert first.broken == again.broken == {place: first.broken[place]}
    assert "broken picture" in first.broken[place]
    tokenizer = parse_tokenizer(build_tokenizer(row["caption"] for shard in many(3, 20) for row in shard), 32)
    with TrainingBatches(shards, again, tokenizer, stage1(), 1) as batches:
        for step in range(1, 11):  # an epoch
            assert batches.batch(step).images.shape == (BATCH, 8)
        assert list(batches.broken) == [WORN]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 40)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)


def forget(file: Path) -> None:
    file.with_name(feature_file.ABOUT).unlink()


def garble(file: Path) -> None:
    file.with_name(feature_file.ABOUT).write_text('{"num_rows": 36}', encoding="utf-8")


@pytest.mark.parametrize("damage", [cut, flip_a_bit, forget, garble, Path.unlink])
def test_features_that_are_torn_or_damaged_are_not_taken(
    damage: Callable[[Path], None], store: Store, encoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    features = stored(store)
    wanted, ((file,),) = rows_of(features), features.files
    damage(file)
    encoded.clear()
    assert torch.equal(rows_of(stored(store)), wanted)
    assert sum(encoded) == 36
    assert "torn or damaged: its pictures are encoded again" in capsys.readouterr().out


KILLED = """
import os, signal
from pathlib import Path
from clip_core.data.store import open_store
from clip_core.model.clip import CLIP
from clip_core.data import feature_file
from clip_core.train import feature_cache
from tests.test_feature_cache import stored
feature_cache.AT_ONCE, feature_file.SAVES_EVERY, real, calls = 4, 0.0, CLIP.encode_images, []
def encode_images(self, pixels):
    calls.append(len(pixels))
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, pixels)
CLIP.encode_images = encode_images
stored(open_store(Path(%r)))
"""


def test_a_killed_computation_goes_on_where_it_was_unless_what_it_left_is_damaged(
    store: Store, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "AT_ONCE", 4)
    wanted = rows_of(stored(store))
    shutil.rmtree(kept.KEPT)
    script, environment = KILLED % str(store.folder), ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True).returncode < 0
    ((kind, num_results, size, _),) = kept.listed()
    assert (kind, num_results) == ("features", 0) and size >= 16 * 32
    left = kept.KEPT.rename("left")
    for damage, num_encoded in ((None, 20), (cut, 36), (flip_a_bit, 36), (forget, 36)):
        shutil.copytree(left, kept.KEPT)
        (begun,) = (kept.KEPT / "features").iterdir()
        if damage:
            damage(begun / feature_file.FILE)
        with (begun / feature_file.FILE).open("ab") as file:
            file.write(b"half a row")  # of what was not saved
        encoded.clear()
        assert torch.equal(rows_of(stored(store)), wanted)
        assert sum(encoded) == num_encoded
        assert not begun.exists()
        if damage is forget:  # killed between the last save and the name
            begun.with_name(begun.name.removeprefix(".").removesuffix(".begun")).rename(begun)
            encoded.clear()
            assert torch.equal(rows_of(stored(store)), wanted)
            assert sum(encoded) <= 4
        shutil.rmtree(kept.KEPT)


def test_a_view_is_a_function_of_seed_view_and_place_and_each_step_draws_one(
    store: Store, project: Path, encoded: list[int]
) -> None:
    model, plain = tiny_clip(tiny_tokenizer_json(store)), AsNeeded(store, IMAGE_SIZE, Preprocessing(), "exact")

    def views(number: int, seed: int = 1) -> Stored:
        return image_features_of(model, plain, "fp32", [View(CHANGED, seed, view) for view in range(number)])

    two = views(2)
    for place, view in ((0, 0), (5, 1), (35, 0)):
        random = random_at(1, "view", view, place)
        pixels = augment(plain(np.array([place])), CHANGED, random, 1, slice(0, 1))
        with torch.no_grad():
            torch.testing.assert_close(two(np.array([place]))[0, view], model.encode_images(pixels)[0])
    encoded.clear()
    three = views(3)
    assert sum(encoded) == 36  # the third view alone
    assert torch.equal(rows_of(three)[:, :2], rows_of(two))
    assert not torch.equal(rows_of(views(2, seed=2)), rows_of(two))

    params, tokenizer = stage1(CHANGED, 3), parse_tokenizer(tiny_tokenizer_json(store), 16)
    batches = TrainingBatches(store, three, tokenizer, params, 1)
    drawn = []
    for step in range(1, 13):
        places = [store.image_ids.index(name.partition(": ")[0]) for name in batches.named(step)]
        found = batches.batch(step).images
        drawn += (three(np.array(places)) == found[:, None]).all(2).float().argmax(1).tolist()
        assert torch.equal(three(np.array(places))[range(BATCH), drawn[-BATCH:]], found)
    assert sorted(set(drawn)) == [0, 1, 2] and min(map(drawn.count, range(3))) > 24  # of 144
    assert torch.equal(batches.batch(7).images, TrainingBatches(store, three, tokenizer, params, 1).batch(7).images)


def test_workers_that_read_the_pictures_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "AT_ONCE", 7)
    two_shards = sentence_store(tmp_path / "made", many(2, 20), broken=[WORN])
    plain, view = AsNeeded(two_shards, IMAGE_SIZE, Preprocessing(), "exact"), [View(CHANGED, 1, 0)]
    here = image_features_of(tiny_clip(), plain, "fp32", view)
    wanted = rows_of(here)
    shutil.rmtree(kept.KEPT)
    there = image_features_of(tiny_clip(), plain, "fp32", view, Loader(workers=2, prefetch=2))
    assert torch.equal(rows_of(there), wanted)
    assert there.broken == here.broken != {}
