"""CLIP: an image tower and a text tower that meet in one space of `embed_dim` dimensions."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clip_core.model.contract import Architecture
from clip_core.model.image_tower import make_image_tower
from clip_core.model.text_tower import TextTower

MAX_LOGIT_SCALE = math.log(100)  # as in the CLIP paper
LOGIT_BIAS = -10.0  # at the start, as in the SigLIP paper


class CLIP(nn.Module):
    """Encodes pictures and texts as unit vectors; `logit_scale` is the learned log of the inverse temperature."""

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        tower = make_image_tower(architecture.image_tower, architecture.image_size)
        self.image_tower = tower.module
        self.image_projection: nn.Module = nn.Identity()
        if not (tower.is_joint and tower.width == architecture.embed_dim):
            self.image_projection = nn.Linear(tower.width, architecture.embed_dim, bias=tower.projection_bias)
        self.text_tower = TextTower(architecture.text_tower)
        bias = self.text_tower.is_siglip
        self.text_projection = nn.Linear(self.text_tower.width, architecture.embed_dim, bias=bias)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias: nn.Parameter | None = None
        self.teacher_projection: nn.Linear | None = None  # into a teacher's width, in a training alone
        if architecture.logit_bias:
            self.add_logit_bias()
        for projection in (self.image_projection, self.text_projection):
            if isinstance(projection, nn.Linear):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        # Constants of the contract, not weights: they are not saved.
        preprocessing = architecture.preprocessing
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(batch, 3, image_size, image_size) uint8 -> (batch, embed_dim), L2-normalised."""
        normalised = (pixels.float() / 255 - self.mean) / self.std
        return normalize(self.image_projection(self.image_tower(normalised)).float(), dim=-1)

    def encode_texts(self, token_ids: Tensor) -> Tensor:
        """(batch, length) padded with 0 -> (batch, embed_dim), L2-normalised."""
        return normalize(self.text_projection(self.text_tower(token_ids)).float(), dim=-1)

    def add_logit_bias(self) -> None:
        """Gives the model the bias that the sigmoid loss learns, at its published start; nothing else needs it."""
        self.architecture = self.architecture.model_copy(update={"logit_bias": True})
        self.logit_bias = nn.Parameter(torch.tensor(LOGIT_BIAS))

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keeps the logits' factor from 1 on, and up to 100 where no bias goes with it: SigLIP has no limit."""
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE if self.logit_bias is None else None)


def make_clip(architecture: Architecture, seed: int) -> CLIP:
    """A new model; its weights are a function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(architecture)
