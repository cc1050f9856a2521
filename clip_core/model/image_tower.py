"""The image tower: any of timm's models, without its classifier."""

from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import nn

from clip_core.config.model import ImageTower
from clip_core.errors import UserError

# timm's own about where weights come from and what is returned, which is not the params' to say: nothing here
# downloads, and no file but the weights is opened.
NOT_OPTIONS = {
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "features_only",
    "num_classes",
    "model_cfg",
    "feature_cfg",
    "kwargs_filter",
}


class Made(NamedTuple):
    """An image tower and what its projection must know."""

    module: nn.Module  # normalised pixels (batch, 3, image_size, image_size) -> (batch, width)
    width: int
    projection_bias: bool  # CLIP's attention pooling (RN50) ends in a projection with bias, which here is the model's
    is_joint: bool  # SigLIP's attention pooling: where the width is embed_dim, its features need no projection


def make_image_tower(tower: ImageTower, image_size: int) -> Made:
    """The timm model that the params name, for pictures of `image_size`."""
    import timm  # takes seconds
    from timm.layers import AttentionPool2d

    if refused := [name for name in tower.options if name in NOT_OPTIONS or name.startswith("pretrained")]:
        raise UserError(
            f"model.image_tower.options: {', '.join(refused)} can not be set: the tower is built without weights and "
            "classifier, and its weights come from files that init names; leave this out"
        )
    if not timm.is_model(tower.name):
        similar = ", ".join(get_close_matches(tower.name, timm.list_models())) or "none"
        raise UserError(f"model.image_tower.name: timm has no model {tower.name!r}; similar names: {similar}")
    try:
        module = _create(tower, image_size)
    except TypeError as error:
        raise UserError(f"model.image_tower.options: {tower.name} does not take {tower.options}: {error}") from None
    pools_by_attention = isinstance(getattr(module, "head", None), AttentionPool2d)
    side = module.feature_info[-1]["reduction"] if pools_by_attention else _side_of_patch(module)
    if image_size % side and image_size != module.default_cfg["input_size"][-1]:  # So400m/14 was trained at 384
        fitting = max(1, round(image_size / side)) * side
        raise UserError(
            f"image_size {image_size}: {tower.name} cuts pictures into squares of {side} pixels; {fitting} fits"
        )
    return Made(module, module.num_features, pools_by_attention, getattr(module, "global_pool", None) == "map")


def _side_of_patch(module: nn.Module) -> int:
    patch_size = getattr(getattr(module, "patch_embed", None), "patch_size", 1)
    return patch_size if isinstance(patch_size, int) else patch_size[0]


def _create(tower: ImageTower, image_size: int) -> Any:
    import timm

    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, **tower.options}
    try:
        return timm.create_model(tower.name, img_size=image_size, **options)
    except TypeError:  # towers that take pictures of any size do not know the option
        return timm.create_model(tower.name, **options)
