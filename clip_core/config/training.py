"""What every training has: how long, how fast, on what."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clip_core.config.section import Count, Positive, Section, Share, Template

PeakLr = Annotated[float, Field(gt=0, le=1)]


class Schedule(Section):
    """How long, and the learning rate on the way; `num_steps` or `num_epochs`, the other is null."""

    num_steps: Annotated[int, Field(ge=0)] | None  # 0: the weights pass through as they are
    num_epochs: Count | None  # an epoch: as many draws as there are rows (clip_core/data/rows.py), about the pairs
    warmup_steps: Annotated[int, Field(ge=0)]  # of epochs at most a quarter of all steps: data may be small
    peak_lr: PeakLr

    @model_validator(mode="after")
    def _one_length_is_given(self) -> "Schedule":
        if (self.num_steps is None) == (self.num_epochs is None):
            given = f"num_steps is {self.num_steps} and num_epochs is {self.num_epochs}"
            raise ValueError(f"{given}: give one of them, the other is null")
        if self.num_steps is not None and self.warmup_steps >= max(self.num_steps, 1):
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be less than num_steps ({self.num_steps})")
        return self


class LrShares(Section):
    """Parts of the learning rate; 0: stays as it is."""

    image_tower: Share
    text_tower: Share
    projections: Share


class Optimizer(Section):
    """AdamW."""

    beta1: Annotated[float, Field(gt=0, lt=1)]
    beta2: Annotated[float, Field(gt=0, lt=1)]
    eps: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Positive | None  # null: gradients of any length, as in the reference
    lr_shares: LrShares
    layer_decay: Annotated[float, Field(gt=0, le=1)]  # of the learning rate, from each layer of a tower to that below


class NoAugmentation(Section):
    """Training pictures as they are."""

    name: Literal["none"]


class AffineAugmentation(Section):
    """Random changes of a training picture; 0 switches one off."""

    name: Literal["affine"]
    scale: Share  # up to this share smaller or larger
    rotate: Annotated[float, Field(ge=0, le=180)]  # degrees either way
    shift: Share  # of the side, either way
    brightness: Share


class AutoAugmentation(Section):
    """The paper's: a random crop, resized, mirrored or not, then one of AutoAugment's (original) 25 policies."""

    name: Literal["auto_augment"]
    min_area: Annotated[float, Field(gt=0, le=1)]  # of the crop, as a share of the picture
    mirror: Share  # of the pictures


Augmentation = Annotated[NoAugmentation | AffineAugmentation | AutoAugmentation, Field(discriminator="name")]


class CaptionMix(Section):
    """How a training caption is drawn for a picture that has a name and keywords; shares add up to 1."""

    templated_name: Share
    keywords: Share
    name_and_keywords: Share
    group_and_name: Share

    @model_validator(mode="after")
    def _adds_up(self) -> "CaptionMix":
        total = self.templated_name + self.keywords + self.name_and_keywords + self.group_and_name
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares must add up to 1, not {total:g}")
        return self


class Captions(Section):
    language: Literal["zh", "en"]
    templates: Annotated[tuple[Template, ...], Field(min_length=1)]
    mix: CaptionMix


class Loss(Section):
    """What is minimised."""

    name: Literal["contrastive", "sigmoid"]  # of CLIP, of SigLIP
    # Whom a pair is no negative of: of itself alone, or of pairs with its caption too, or its picture, or with what
    # curation found alike (near-duplicates) and what shows the same concept; each takes in those before it.
    positives: Literal["pair", "caption", "picture", "group"]


class Best(Section):
    """The weights with the highest recall on the validation split, as the paper takes the best epoch."""

    every: Count  # steps between measurements: they decide the weights, so those of `intervals` do not count
    patience: Count | None  # the training ends after so many without a better one; null: after its last step


class Torch(Section):
    """What torch gives for what."""

    tf32: bool  # fp32 products with 10 bits of the mantissa, where the device has them: several times as fast
    compile: bool  # the towers by torch.compile: minutes before the first step, less time in each
    deterministic: bool  # false: on a GPU faster, and not the same bits twice


class Training(Section):
    """One training."""

    schedule: Schedule
    optimizer: Optimizer
    loss: Loss
    keep: Literal["last"] | Best
    max_skipped_steps: Annotated[int, Field(ge=0)]  # those whose loss or gradient is not finite; one more is an error
    global_batch: Annotated[int, Field(ge=2)]
    micro_batch: Count | None  # rows of a forward pass, with the global batch's gradient; null: all rows at once
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None  # of the weights' average over the steps; null: the last ones
    precision: Literal["auto", "fp32", "bf16"]  # of the towers' arithmetic; weights, optimizer and loss are fp32
    torch: Torch
    checkpoint_activations: bool  # less memory, a third more time
    decoding: Literal["exact", "scaled"]  # scaled: JPEGs to a half, a quarter, ...: faster, slightly other pixels
    augmentation: Augmentation
    captions: Captions

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> "Training":
        if self.micro_batch is not None and self.micro_batch > self.global_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) must be at most global_batch ({self.global_batch})")
        return self
