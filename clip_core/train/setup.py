"""What one training stage trains, and how it sees the pictures: all that tells stage 1 from stage 2."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from clip_core.config.loader import Loader
from clip_core.config.stage1 import Stage1
from clip_core.config.stage2 import Distill, Lora, Stage2
from clip_core.config.training import Training
from clip_core.data.pictures import AsNeeded, Kept, Pictures, decoded
from clip_core.data.store import Store
from clip_core.model.clip import CLIP
from clip_core.model.contract import Contract
from clip_core.train.backward import Encode, compute_as
from clip_core.train.feature_cache import AS_THEY_ARE, View, freeze_image_tower, image_features_of
from clip_core.train.lora import add_adapters
from clip_core.train.patch_dropout import drop_patches
from clip_core.train.teacher import Teacher


@dataclass(frozen=True)
class Setup:
    """A training stage, laid out before its first step."""

    params: Training
    seed: int
    is_image_tower_frozen: bool  # the paper's stage 1
    patch_dropout: float = 0.0
    lora: Lora | None = None
    num_views: int | None = None  # of each picture, which a frozen tower encodes beforehand
    distill: Distill | None = None
    files: Path = Path()  # the folder in which the teacher lies

    @classmethod
    def of(cls, params: Stage1 | Stage2, seed: int) -> Self:
        """That of the stage whose params these are."""
        if isinstance(params, Stage1):
            return cls(params, seed, is_image_tower_frozen=True, num_views=params.num_views)
        files = Path(params.path)
        return cls(params, seed, False, params.patch_dropout, params.lora, distill=params.distill, files=files)

    def pictures(self, store: Store, contract: Contract, keep: bool = True) -> Pictures:
        """The pixels that it trains on, decoded now where it sees them in each epoch and may keep them."""
        if self.params.schedule.num_steps == 0:
            return Kept(torch.empty(0), {})  # nobody asks for any
        keep = keep and not self.sees_features
        return decoded(store, contract.image_size, contract.preprocessing, self.params.decoding, keep)

    def prepare(self, model: CLIP, pictures: Pictures, loader: Loader) -> tuple[Pictures, Encode]:
        """Makes `model` train what this says; gives what a batch holds of its pictures, and how it is encoded."""
        self.lay_out(model)
        compute_as(self.params)
        if isinstance(pictures, AsNeeded) and self.sees_features:
            views = [View(self.params.augmentation, self.seed, number) for number in range(self.num_views or 0)]
            of_all = views or AS_THEY_ARE
            return image_features_of(model, pictures, self.params.precision, of_all, loader), lambda stored: stored
        if self.is_image_tower_frozen:
            return pictures, lambda pixels: _encode_frozen(model, pixels)
        return pictures, model.encode_images

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

    def teacher(self, model: CLIP, store: Store, loader: Loader) -> Teacher | None:
        """The one that `model` learns from, if it does; after `prepare`, as no adapter goes with what it needs."""
        if self.distill is None or self.teacher_folder is None:
            return None
        return Teacher(self.distill, self.teacher_folder, self.params, store, loader).ready_for(model, self.seed)

    @property
    def teacher_folder(self) -> Path | None:
        """Its weights; None without one, or where nothing trains."""
        if self.distill is None or self.params.schedule.num_steps == 0:
            return None
        return self.files / self.distill.weights

    @property
    def sees_features(self) -> bool:
        """Whether it knows beforehand what the tower sees, and the tower never changes: neither do its features."""
        return self.is_image_tower_frozen and (self.params.augmentation.name == "none" or self.num_views is not None)


def _encode_frozen(model: CLIP, pixels: Tensor) -> Tensor:
    """The frozen tower's features; its running statistics stay, too."""
    model.image_tower.eval()
    with torch.no_grad():
        return model.encode_images(pixels)
