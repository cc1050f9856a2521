"""The typed twin of `params.yaml`: every key, its type and its allowed range."""

import difflib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
PeakLr = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
Template = Annotated[str, Field(pattern=r"\{\}")]


def _inside(name: str) -> str:
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError("must be relative to the section's `path` and inside it; name the folder with `path`")
    return name


Inside = Annotated[Name, AfterValidator(_inside)]

EMBED_DIMS = {  # of the models in clip_core/model/registry.py; narrower features are checked against them here
    "tiny": 128,
    "rn50": 1024,
    "vit-b-32": 512,
    "vit-b-16": 512,
    "vit-l-14": 768,
    "vit-l-14-336": 768,
    "vit-h-14": 1024,
}
MAX_WARMUP = 0.25  # more than the paper's longest, 15 % of the steps
RECALLS = tuple(
    f"{way}_{recall}"
    for way in ("text_to_image", "image_to_text")
    for recall in ("recall@1", "recall@5", "recall@10", "mean_recall")
)
METRICS = (  # groups of a benchmark and what is measured of each, see clip_core/evaluate/measure.py
    (("seen", "unseen", "all"), (*RECALLS, "mean_recall")),
    (("zero_shot",), ("top1_accuracy", "seen_top1_accuracy", "unseen_top1_accuracy")),
)


def resembling(name: str, known: Iterable[str]) -> str:
    """A question that names the one of `known` that was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Section(BaseModel):
    """A part of `params.yaml`: no defaults, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EmojiSource(Section):
    """The built-in real data: emoji pictures of eight artworks with their Chinese and English names."""

    source: Literal["emoji"]
    path: Name  # the checked cache that set-up filled
    train_artworks: Annotated[tuple[Name, ...], Field(min_length=1)]
    valid_artwork: Name
    test_artwork: Name
    unseen_percent: Annotated[int, Field(ge=1, le=40)]  # of the concepts, for valid and for test each

    @model_validator(mode="after")
    def _artworks_are_distinct(self) -> "EmojiSource":
        artworks = (*self.train_artworks, self.valid_artwork, self.test_artwork)
        if len(set(artworks)) < len(artworks):
            raise ValueError("train_artworks, valid_artwork and test_artwork must name different artworks")
        return self


class TableSource(Section):
    """A folder of pictures with a CSV: columns `image` and `caption` and, if wanted, `split` and `language`."""

    source: Literal["table"]
    path: Name  # the folder; the column `image` is relative to it
    table: Name  # the CSV's name in the folder
    licence: Name  # of the pictures
    valid_percent: Annotated[int, Field(ge=1, le=40)]  # of the pictures; used where the CSV has no column `split`
    test_percent: Annotated[int, Field(ge=1, le=40)]


class MugeSource(Section):
    """The reference's format: `{name}_imgs.tsv` (id, base64 of a picture) with `{name}_texts.jsonl`."""

    source: Literal["muge"]
    path: Name  # the folder
    licence: Name  # of the pictures
    train: Name  # the name before `_imgs.tsv` of the files for the split
    valid: Name | None  # null: part of train's pictures
    test: Name  # one whose texts name their pictures; of MUGE's own test those are not published
    valid_percent: Annotated[int, Field(ge=1, le=40)]  # of train's pictures; used where valid is null

    @model_validator(mode="after")
    def _splits_are_distinct(self) -> "MugeSource":
        if len({self.train, self.valid, self.test}) < 3:
            raise ValueError("train, valid and test must name different files")
        return self


class Limits(Section):
    """What a picture or a caption may be; a row outside is quarantined."""

    min_side: Count  # pixels
    max_pixels: Count
    max_bytes: Count
    max_aspect: Annotated[float, Field(ge=1)]  # longer side / shorter side
    max_caption_length: Count  # characters


class Validate(Section):
    limits: Limits
    min_mean_cjk_share: Share  # over the Chinese captions of the batch
    max_bad_share: Share  # of the rows; above it the pipeline stops


class Curate(Section):
    near_duplicate_distance: Annotated[int, Field(ge=0, le=16)]  # bits in which two perceptual hashes may differ


class Pack(Section):
    shard_mib: Count


Options = dict[str, int | float | str | bool | tuple[int, ...]]


class ImageTower(Section):
    name: Name  # of a timm model
    options: Options  # passed to timm.create_model


class TextTower(Section):
    name: Name  # of a kind of encoder in transformers: bert, roberta, ...
    options: Options  # of its configuration, in transformers' words

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "TextTower":
        width, heads = self.options.get("hidden_size"), self.options.get("num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and (heads < 1 or width % heads):
            raise ValueError(f"hidden_size ({width}) must be a multiple of num_attention_heads ({heads})")
        return self


def falling(widths: tuple[int, ...]) -> tuple[int, ...]:
    """`widths`, if each is smaller than the one before."""
    if list(widths) != sorted(set(widths), reverse=True):
        raise ValueError(f"each width must be smaller than the one before, not {list(widths)}")
    return widths


class AnyModel(Section):
    """What every model has."""

    image_size: Annotated[int, Field(ge=8, le=1024)]
    context_length: Annotated[int, Field(ge=4, le=512)]  # tokens with [CLS] and [SEP]
    matryoshka: Annotated[tuple[Count, ...], AfterValidator(falling)]  # narrower features that train too; empty: none


def narrower(widths: tuple[int, ...], embed_dim: int) -> None:
    """Raises ValueError unless the widths are less than the features' own."""
    if widths and widths[0] >= embed_dim:
        raise ValueError(f"matryoshka: {widths[0]} is not less than embed_dim ({embed_dim})")


class NamedModel(AnyModel):
    """A model whose shape stands in `clip_core/model/registry.py`."""

    name: Literal["tiny", "rn50", "vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336", "vit-h-14"]

    @model_validator(mode="after")
    def _widths_are_narrower(self) -> "NamedModel":
        narrower(self.matryoshka, EMBED_DIMS[self.name])
        return self


class CustomModel(AnyModel):
    """A model of one's own: any image tower of timm with any text encoder of transformers."""

    name: Literal["custom"]
    image_tower: ImageTower
    text_tower: TextTower
    embed_dim: Count

    @model_validator(mode="after")
    def _widths_are_narrower(self) -> "CustomModel":
        narrower(self.matryoshka, self.embed_dim)
        return self


class Schedule(Section):
    """How long, and the learning rate on the way; `num_steps` or `num_epochs`, the other is null."""

    num_steps: Annotated[int, Field(ge=0)] | None  # 0: the weights pass through as they are
    num_epochs: Count | None  # an epoch: as many draws as there are pairs
    warmup_steps: Annotated[int, Field(ge=0)]  # of epochs at most MAX_WARMUP of all steps: data may be small
    peak_lr: PeakLr

    @model_validator(mode="after")
    def _one_length_is_given(self) -> "Schedule":
        if (self.num_steps is None) == (self.num_epochs is None):
            given = f"num_steps is {self.num_steps} and num_epochs is {self.num_epochs}"
            raise ValueError(f"{given}: give one of them, the other is null")
        if self.num_steps is not None and self.warmup_steps >= max(self.num_steps, 1):
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be less than num_steps ({self.num_steps})")
        return self

    def steps(self, num_pairs: int, global_batch: int) -> int:
        """The number of steps when there are `num_pairs` pairs; an epoch's last batch is filled up, as the paper's."""
        if self.num_steps is not None:
            return self.num_steps
        assert self.num_epochs is not None
        return self.num_epochs * -(-num_pairs // global_batch)

    def warmup(self, num_steps: int) -> int:
        """The steps of warm-up when there are `num_steps` in all."""
        return self.warmup_steps if self.num_epochs is None else min(self.warmup_steps, int(MAX_WARMUP * num_steps))


class Optimizer(Section):
    """AdamW."""

    beta1: Annotated[float, Field(gt=0, lt=1)]
    beta2: Annotated[float, Field(gt=0, lt=1)]
    eps: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Positive | None  # null: gradients of any length, as in the reference


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


class Training(Section):
    """One training."""

    schedule: Schedule
    optimizer: Optimizer
    global_batch: Annotated[int, Field(ge=2)]
    micro_batch: Count | None  # rows of a forward pass, with the global batch's gradient; null: all rows at once
    precision: Literal["auto", "fp32", "bf16"]  # of the towers' arithmetic; weights, optimizer and loss are fp32
    checkpoint_activations: bool  # less memory, a third more time
    augmentation: Augmentation
    captions: Captions
    log_every: Count
    save_every: Count  # steps between checkpoints

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> "Training":
        if self.micro_batch is not None and self.micro_batch > self.global_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) must be at most global_batch ({self.global_batch})")
        return self


class TrainingStage(Training):
    """Stage 1 or stage 2: a training that the validation split accompanies."""

    evaluate_every: Count


class Lora(Section):
    """Low-rank adapters instead of all weights (Hu et al. 2021)."""

    rank: Count
    alpha: Count  # the adapters count alpha / rank times
    dropout: Annotated[float, Field(ge=0, lt=1)]  # of what goes into an adapter


class Stage2(TrainingStage):
    """Both towers train."""

    patch_dropout: Annotated[float, Field(ge=0, lt=1)]  # the share of a picture's patches left out in a step (FLIP)
    lora: Lora | None  # null: all weights train


class AnyInit(Section):
    """Where stage 1 starts. Files are named relative to `path`, whose contents decide whether init has to run again."""

    path: Name  # a folder


class WarmStart(AnyInit):
    """The image tower trained here as an English CLIP, which it is in the paper."""

    from_: Annotated[Literal["warm_start"], Field(alias="from")]
    bert_folder: Inside | None  # a local BERT for the text tower; null: BERT's architecture, random start
    warm_start: Training


class FromTowers(AnyInit):
    """The paper's start: an English CLIP's image side, a Chinese BERT, a random text projection."""

    from_: Annotated[Literal["towers"], Field(alias="from")]
    image_tower: Inside  # a file or folder of timm, open_clip or transformers
    bert_folder: Inside


class FromWeights(AnyInit):
    """Weights of a Chinese CLIP: a released file or folder, or a weights folder made here."""

    from_: Annotated[Literal["weights"], Field(alias="from")]
    weights: Inside
    vocabulary: Inside | None  # vocab.txt, for a released file that has none beside it


class Evaluate(Section):
    num_bootstrap: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    prompt_templates: Annotated[tuple[Template, ...], Field(min_length=1)]  # for zero-shot classification


class Export(Section):
    width: Count | None  # of the features that are evaluated, exported and served: one of model.matryoshka; null: all
    opset: Annotated[int, Field(ge=18, le=23)]
    max_feature_difference: Positive
    tie_margin: Positive  # scores closer than this may change places in the top 10


class Index(Section):
    top_k: Annotated[int, Field(ge=1, le=100)]
    min_recall: Share  # of the index against the exact search


class Deploy(Section):
    num_golden: Count  # golden queries sent to a release before it serves
    num_timed: Count  # requests behind the latencies
    max_feature_difference: Positive


class Ablation(Section):
    """What the ablation's arms do not share with stage 1 and stage 2."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]  # each with its own English warm start
    scratch_peak_lr: PeakLr
    direct_peak_lr: PeakLr  # of one stage without freezing

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> "Ablation":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be different ones")
        return self


class Params(Section):
    """All of `params.yaml`."""

    seed: Seed
    data: Annotated[EmojiSource | TableSource | MugeSource, Field(discriminator="source")]
    validate_: Annotated[Validate, Field(alias="validate")]  # pydantic owns the bare name
    curate: Curate
    pack: Pack
    model: Annotated[NamedModel | CustomModel, Field(discriminator="name")]
    init: Annotated[WarmStart | FromTowers | FromWeights, Field(discriminator="from_")]
    stage1: TrainingStage
    stage2: Stage2
    evaluate: Evaluate
    gates: dict[Name, Share]  # metric of the validation benchmark -> the least it may be
    export: Export
    index: Index
    deploy: Deploy
    ablation: Ablation

    @field_validator("export")
    @classmethod
    def _exported_width_was_trained(cls, export: Export, others: ValidationInfo) -> Export:
        model: AnyModel | None = others.data.get("model")  # none when it is wrong itself
        if model and export.width is not None and export.width not in model.matryoshka:
            trained = list(model.matryoshka)
            raise ValueError(f"width ({export.width}) must be one of model.matryoshka {trained}, or null")
        return export

    @field_validator("gates")
    @classmethod
    def _gates_name_metrics(cls, gates: dict[str, float]) -> dict[str, float]:
        known = [f"{group}.{metric}" for groups, metrics in METRICS for group in groups for metric in metrics]
        unknown = [f"no metric {name!r}{resembling(name, known)}" for name in gates if name not in known]
        if unknown:
            allowed = " and ".join(f"({' | '.join(groups)}).({' | '.join(metrics)})" for groups, metrics in METRICS)
            raise ValueError(f"{', '.join(unknown)}. Allowed are {allowed}")
        return gates
