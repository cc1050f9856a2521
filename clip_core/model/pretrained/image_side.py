"""Reads the image side of a CLIP, its tower and projection, as timm, open_clip or transformers store it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_core.config.model import ImageTower
from clip_core.errors import UserError
from clip_core.image import AS_SEEN, AS_SIGLIP2, Preprocessing
from clip_core.model.image_tower import make_image_tower
from clip_core.model.pretrained.checkpoint import Checkpoint, read_checkpoint
from clip_core.model.pretrained.names import (
    OPENAI,
    OPENAI_RESNET,
    TIMM,
    TIMM_RESNET,
    TRANSFORMERS_VIT,
    TRANSPOSED,
    Table,
    their_names,
    to_ours,
)
from clip_core.model.pretrained.positions import check_image_size, resize_all_positions
from clip_core.model.pretrained.recognise import HEAD_WIDTH, Recognised, for_size, recognise_resnet, recognise_vit

TOWER, PROJECTION = "image_tower.", "image_projection."
OPEN_CLIP = {  # what a vision_cfg may say that tensors do not show, and what the towers here have
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "pos_embed_type": "learnable",
    "act_kwargs": None,
    "norm_kwargs": None,
}
TIMM_CLASSIFIERS = ("head.fc.", "fc.", "classifier.")


@dataclass(frozen=True)
class ImageSide:
    """The image tower and the projection of a CLIP, in our names and in fp32."""

    recognised: ImageTower  # what the tensors are
    image_size: int
    tower: dict[str, Tensor]  # names as in the tower's own state_dict
    projection: Tensor | None  # (embed_dim, width); None: the source has none
    projection_bias: Tensor | None
    logit_scale: float | None  # the logarithm, as the model holds it


def read_image_side(source: Path, tower: ImageTower | None = None, image_size: int | None = None) -> ImageSide:
    """The image side of the CLIP in a file or folder; the text side, if there is one, is left out.

    `tower` is what the tensors must fit; None: it is recognised. With `image_size` the positions are resized. Raises
    ValueError that lists all that is missing, unexpected or of another shape.
    """
    return image_side_in(read_checkpoint(source), tower, image_size)


def image_side_in(checkpoint: Checkpoint, tower: ImageTower | None = None, image_size: int | None = None) -> ImageSide:
    """The image side of the CLIP in a checkpoint."""
    try:
        theirs, table = _image_tensors(checkpoint.tensors)
        found = _recognise(theirs, table, checkpoint.config, heads_matter=tower is None)
        if found is None and tower is not None:
            found = Recognised(tower, image_size or 224, 1)
        if found is None:
            raise UserError(
                "no image tower that is known by its tensors; name it in model.image_tower, or give a folder with "
                f"timm's config.json. It holds {', '.join(list(checkpoint.tensors)[:5])}, ..."
            )
        size, wanted_tower = found.image_size, tower or found.tower
        ours = to_ours(theirs, _wanted(theirs, table, wanted_tower, size), table)
        if image_size not in (None, size):
            check_image_size(image_size, found.stride)
            ours = resize_all_positions(ours, _wanted(theirs, table, wanted_tower, image_size))
    except ValueError as error:
        raise UserError(f"{checkpoint.source}: {error}") from None
    if tower is None and not checkpoint.config and table not in (OPENAI_RESNET, TIMM_RESNET):
        print(f"{checkpoint.source}: no config says which activation it has: QuickGELU assumed, as in OpenAI's towers")
    scale = ours["logit_scale"].item() if "logit_scale" in ours else checkpoint.config.get("logit_scale")
    return ImageSide(
        recognised=for_size(found.tower, image_size or size),
        image_size=image_size or size,
        tower={name.removeprefix(TOWER): tensor for name, tensor in ours.items() if name.startswith(TOWER)},
        projection=ours.get(f"{PROJECTION}weight"),
        projection_bias=ours.get(f"{PROJECTION}bias"),
        logit_scale=scale,
    )


def timm_folder(side: ImageSide, preprocessing: Preprocessing) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the config.json of a folder as timm has them; the projection is its classifier."""
    head = "head.proj." if "head.pos_embed" in side.tower else "head."
    projection: dict[str, Tensor] = {}
    if side.projection is not None:
        bias = side.projection_bias
        projection[f"{head}weight"] = side.projection
        projection[f"{head}bias"] = torch.zeros(len(side.projection)) if bias is None else bias
    num_classes = 0 if side.projection is None else len(side.projection)
    config = {
        "architecture": side.recognised.name,
        "model_args": {**side.recognised.options, "img_size": side.image_size},
        "num_classes": num_classes,
        "pretrained_cfg": {
            "input_size": [3, side.image_size, side.image_size],
            "crop_pct": 1.0,
            "interpolation": preprocessing.resize.removeprefix("squash-"),
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "num_classes": num_classes,
        },
        "logit_scale": side.logit_scale,  # ours; timm has no place for it
    }
    return {**side.tower, **projection}, config


def prepared_for(tower: ImageTower) -> Preprocessing:
    """How the pictures were prepared that released weights of such a tower were trained with."""
    return AS_SIGLIP2 if "_siglip" in tower.name else AS_SEEN


def _image_tensors(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Table]:
    """The tensors of the image side, and the table that knows their names."""
    scale = {name: tensors[name].reshape(()) for name in ("logit_scale",) if name in tensors}
    if any(name.startswith("visual.trunk.") for name in tensors):  # open_clip with a tower of timm
        trunk = {n.removeprefix("visual.trunk."): t for n, t in tensors.items() if n.startswith("visual.trunk.")}
        heads = {n.replace("visual.head.proj.", "head."): t for n, t in tensors.items() if n.startswith("visual.head.")}
        return {**trunk, **heads, **scale}, TIMM
    if any(name.startswith("visual.") for name in tensors):
        visual = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
        resnet = any(name.startswith(("visual.attnpool.", "visual.layer1.")) for name in visual)
        return {**visual, **scale}, OPENAI_RESNET if resnet else OPENAI
    if "embeddings.class_embedding" in tensors:  # transformers' CLIPVisionModel
        tensors = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    if any(name.startswith("vision_model.") for name in tensors):
        prefixes = ("vision_model.", "visual_projection.")
        vision = {n: t for n, t in tensors.items() if n.startswith(prefixes) and not n.endswith("position_ids")}
        return {**vision, **scale}, TRANSFORMERS_VIT
    return _timm_tensors(tensors)


def _timm_tensors(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Table]:
    """timm's tensors; of a head only the projection of CLIP stays, which has no bias in a ViT."""
    tower = {name: tensor for name, tensor in tensors.items() if not name.startswith(TIMM_CLASSIFIERS)}
    if "head.pos_embed" in tower:
        return tower, TIMM_RESNET
    bias = tower.pop("head.bias", None)
    if bias is not None and bias.any():  # a classifier
        tower.pop("head.weight", None)
    return tower, TIMM


def _recognise(
    theirs: dict[str, Tensor], table: Table, config: dict[str, Any], heads_matter: bool
) -> Recognised | None:
    of_open_clip = config.get("model_cfg", {}).get("vision_cfg", {})
    patch = theirs.get("patch_embed.proj.weight")
    stride = 32 if patch is None else patch.shape[-1]
    if isinstance(name := config.get("architecture"), str):  # timm's folder
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in (config.get("model_args") or {}).items()}
        options.pop("img_size", None)
        size = (config.get("pretrained_cfg") or {}).get("input_size", (3, 224, 224))[-1]
        return Recognised(ImageTower(name=name, options=options), size, stride)
    if isinstance(name := of_open_clip.get("timm_model_name"), str):
        return Recognised(ImageTower(name=name, options={}), of_open_clip.get("image_size", 224), stride)
    if table in (OPENAI_RESNET, TIMM_RESNET):
        return recognise_resnet(theirs, table)
    if table is TIMM and not {"norm_pre.weight", "cls_token"} <= set(theirs):  # no ViT of CLIP's kind
        return None
    if of_open_clip:
        if other := [f"{k} {of_open_clip[k]!r}" for k, here in OPEN_CLIP.items() if of_open_clip.get(k, here) != here]:
            raise UserError(f"its vision_cfg has {', '.join(other)}, which no image tower here can have")
        config = {
            "hidden_act": "quick_gelu" if config["model_cfg"].get("quick_gelu") else "gelu",
            "head_width": of_open_clip.get("head_width", HEAD_WIDTH),  # open_clip's own, whatever the width
        }
    return recognise_vit(theirs, table, config.get("vision_config") or config, heads_matter)


def _wanted(theirs: dict[str, Tensor], table: Table, tower: ImageTower, image_size: int) -> dict[str, Tensor]:
    """What the source must hold, in our names: the tower, and of the rest what it has."""
    with torch.device("meta"):
        made = make_image_tower(tower, image_size)
        wanted = {f"{TOWER}{name}": tensor for name, tensor in made.module.state_dict().items()}
        (projection,) = their_names(f"{PROJECTION}weight", table)
        if projection in theirs:
            shape = theirs[projection].shape
            embed_dim = shape[-1 if projection in TRANSPOSED else 0]
            wanted[f"{PROJECTION}weight"] = torch.empty(embed_dim, made.width)
            if made.projection_bias:
                wanted[f"{PROJECTION}bias"] = torch.empty(embed_dim)
        if "logit_scale" in theirs:
            wanted["logit_scale"] = torch.empty(())
    return wanted
