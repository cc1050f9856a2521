"""The image tower: any of timm's models, without its classifier."""

from difflib import get_close_matches
from typing import Any

from torch import nn

from clip_core.config import ImageTower


def make_image_tower(tower: ImageTower) -> tuple[nn.Module, int]:
    """The timm model that maps normalised pixels to one vector a picture, and the width of that vector."""
    import timm  # takes seconds

    if not timm.is_model(tower.name):
        similar = ", ".join(get_close_matches(tower.name, timm.list_models())) or "none"
        raise ValueError(f"model.image_tower.name: timm has no model {tower.name!r}; similar names: {similar}")
    options: dict[str, Any] = dict(tower.options)
    try:
        module: Any = timm.create_model(tower.name, pretrained=False, num_classes=0, **options)
    except TypeError as error:
        raise ValueError(f"model.image_tower.options: {tower.name} does not take {tower.options}: {error}") from None
    return module, module.num_features
