"""What one training stage trains, and how it sees the pictures: all that tells stage 1 from stage 2."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_core.config.loader import Loader
from clip_core.config.stage2 import Lora
from clip_core.config.training import Training
from clip_core.data.pictures import Pictures
from clip_core.model.clip import CLIP
from clip_core.train.backward import Encode
from clip_core.train.feature_cache import freeze_image_tower, image_features_of
from clip_core.train.lora import add_adapters
from clip_core.train.patch_dropout import drop_patches


@dataclass(frozen=True)
class Setup:
    """A training stage, laid out before its first step."""

    params: Training
    seed: int
    is_image_tower_frozen: bool  # the paper's stage 1
    patch_dropout: float = 0.0
    lora: Lora | None = None

    def prepare(self, model: CLIP, pictures: Pictures, num_pictures: int, loader: Loader) -> tuple[Pictures, Encode]:
        """Makes `model` train what this says; gives what a batch holds of its pictures, and how it is encoded."""
        self.lay_out(model)
        if self.keeps_features:
            return image_features_of(model, pictures, num_pictures, loader), lambda cached: cached
        if self.is_image_tower_frozen:
            return pictures, lambda pixels: _encode_frozen(model, pixels)
        return pictures, model.encode_images

    @property
    def keeps_features(self) -> bool:
        """Whether the pictures never change, nor do their features, which are computed once."""
        never_change = self.params.augmentation.name == "none" and self.params.schedule.num_steps != 0
        return self.is_image_tower_frozen and never_change

    def lay_out(self, model: CLIP) -> None:
        """Makes the parameters train that this says, through all of a picture or a part."""
        if self.params.loss.name == "sigmoid" and model.logit_bias is None:
            model.add_logit_bias()
        if self.is_image_tower_frozen:
            freeze_image_tower(model)
            return
        if self.patch_dropout:
            drop_patches(model, self.patch_dropout)
        if self.lora:
            add_adapters(model, self.lora, self.seed)


def _encode_frozen(model: CLIP, pixels: Tensor) -> Tensor:
    """The frozen tower's features; its running statistics stay, too."""
    model.image_tower.eval()
    with torch.no_grad():
        return model.encode_images(pixels)
