"""FLIP: while it trains, a vision transformer sees a part of the patches only."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clip_core.config.model import ImageTower
from clip_core.model.clip import CLIP, make_clip
from clip_core.train.patch_dropout import drop_patches
from tests.test_grad_cache import assert_close, batch_of, step, step_keeping_all, with_micro_batch
from tests.tiny import tiny_clip
from tests.variants import vit_architecture, vit_clip


def tokens_seen(model: CLIP) -> Callable[[], list[int]]:
    """How many tokens went into the first block, each time it was asked since."""
    seen = []
    first = model.image_tower.get_submodule("blocks.0")
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    return lambda: seen


@pytest.mark.parametrize(("share", "kept"), [(0.5, 8), (0.75, 4), (0.3, 11), (0.99, 1)])
def test_the_blocks_see_the_class_token_and_the_share_of_patches_that_is_left(share: float, kept: int) -> None:
    model = vit_clip()
    seen = tokens_seen(model)
    drop_patches(model, share)
    model.train().encode_images(batch_of().images)
    model.eval().encode_images(batch_of().images)
    assert seen() == [1 + kept, 1 + 16]


def test_a_model_in_use_sees_everything_as_before() -> None:
    model, pixels = vit_clip().eval(), batch_of().images
    with torch.no_grad():
        before = model.encode_images(pixels)
        drop_patches(model, 0.5)
        assert torch.equal(model.train().eval().encode_images(pixels), before)
    assert model.state_dict().keys() == vit_clip().state_dict().keys()


def test_the_patches_are_a_function_of_the_seed_and_differ_between_pictures() -> None:
    model = vit_clip(dropout=0.0)
    drop_patches(model, 0.5)
    same_picture = batch_of().images[:1].expand(4, -1, -1, -1)

    def features(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return model.train().encode_images(same_picture)

    assert torch.equal(features(1), features(1))
    assert not torch.allclose(features(1), features(2))
    assert len(features(1).unique(dim=0)) > 1


@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 1e-4), ("bf16", 0.02)])
def test_both_passes_of_gradient_caching_see_the_same_patches(precision: str, rtol: float) -> None:
    models = vit_clip(dropout=0.0), vit_clip(dropout=0.0)
    for model in models:
        drop_patches(model, 0.5)
    found = step(models[0], with_micro_batch(4, precision=precision))
    assert_close(found, step_keeping_all(models[1], 4, precision), rtol)


def test_towers_with_rotary_positions_drop_patches_too() -> None:
    tower = ImageTower(
        name="eva02_tiny_patch14_224",
        options={"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8, "ref_feat_shape": (4, 4)},
    )
    model = make_clip(vit_architecture().model_copy(update={"image_tower": tower}), 1)
    seen = tokens_seen(model)
    drop_patches(model, 0.5)
    model.train().encode_images(batch_of().images)
    assert seen() == [9]


def test_a_tower_without_patches_is_named() -> None:
    with pytest.raises(ValueError, match=r"stage2\.patch_dropout: the image tower resnet10t has no patches"):
        drop_patches(tiny_clip(), 0.5)
