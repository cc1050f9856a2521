"""Reads and names SigLIP 2 for fixed resolutions: folders of transformers, whose class for it is SiglipModel.

Shapes, counts and the tensors' layout, with their sources: docs/models.md.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_core.config.model import ImageTower, Options, TextTower
from clip_core.errors import UserError
from clip_core.image import AS_SIGLIP2
from clip_core.model.clip import CLIP
from clip_core.model.contract import TOKENIZER_FILE, Architecture, TextArchitecture
from clip_core.model.pretrained.checkpoint import Checkpoint
from clip_core.model.pretrained.names import SIGLIP, to_ours, to_theirs
from clip_core.model.pretrained.positions import check_image_size, resize_all_positions, side_of
from clip_core.model.pretrained.recognise import Recognised, for_size, keystones, name_of, num_numbered
from clip_core.model.pretrained.released import Released, as_prepared
from clip_core.model.pretrained.siglip_tokenizer import tokenizer_of_siglip2
from clip_core.model.registry import MODELS, SIGLIP2_SIZES, SIGLIP2_VIT, SIGLIP_TEXT
from clip_core.model.weights import without_weights

ACCEPTED = (
    "accepted are SigLIP 2 for fixed resolutions (google/siglip2-base-patch16-224 and its kin), as a folder of "
    "transformers with config.json, model.safetensors, tokenizer.json and preprocessor_config.json"
)
VOCABULARIES_OF_SIGLIP = (32_000, 250_000)  # of the first one: English, and i18n
AS_IN_CONFIG = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}  # of both towers, also where it is silent
LENGTH = 64  # tokens, as in all trainings
HEADS = 12  # where config.json is silent
ANY = "vit_base_patch16_siglip_224"  # with options, any other of the kind
IN_PROJ = "vision_model.head.attention.in_proj_"
SCALARS = ("logit_scale", "logit_bias")  # (1,) there


def is_siglip(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint is a whole SigLIP, of whatever kind."""
    return "vision_model.head.probe" in checkpoint.tensors and any(
        name.startswith("text_model.") for name in checkpoint.tensors
    )


def siglip_in(
    checkpoint: Checkpoint, tokenizer: Path | None, image_size: int | None, context_length: int | None
) -> Released:
    """The SigLIP 2 in a checkpoint; `tokenizer`: its tokenizer.json, where it does not lie in the folder."""
    unused = [name for name in checkpoint.tensors if name.endswith(".position_ids")]
    theirs = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in unused}
    try:
        _check_kind(theirs, checkpoint.config)
        image, text, vocab_size = _recognise(theirs, checkpoint.config)
        preprocessing, own_length = as_prepared(checkpoint.source, image.image_size, AS_SIGLIP2)
        file = tokenizer or checkpoint.source / TOKENIZER_FILE
        tokenizer_json = tokenizer_of_siglip2(file, vocab_size)
        architecture = Architecture(
            image_tower=image.tower,
            text_tower=TextArchitecture(**text.model_dump(), vocab_size=vocab_size),
            embed_dim=theirs["vision_model.head.probe"].shape[-1],
            image_size=image.image_size,
            context_length=context_length or own_length or LENGTH,
            preprocessing=preprocessing,
            logit_bias=True,
        )
        model = without_weights(architecture)
        ours = to_ours(apart(theirs), model.state_dict(), SIGLIP)
        if image_size not in (None, image.image_size):
            check_image_size(image_size, image.stride)
            tower = for_size(image.tower, image_size)
            architecture = architecture.model_copy(update={"image_size": image_size, "image_tower": tower})
            model = without_weights(architecture)
            ours = resize_all_positions(ours, model.state_dict())
    except ValueError as error:
        raise UserError(f"{checkpoint.source}: {error}\n{ACCEPTED}") from None
    model.load_state_dict(ours, assign=True)
    return Released(model.eval(), tokenizer_json, name_of(architecture), file, unused)


def siglip_tensors(model: CLIP) -> dict[str, Tensor]:
    """The tensors of a SigLIP model in transformers' names and shapes; raises ValueError where it has no names."""
    theirs = to_theirs(model.state_dict(), SIGLIP)
    for kind in ("weight", "bias"):
        parts = [theirs.pop(f"vision_model.head.attention.{part}_proj.{kind}") for part in "qkv"]
        theirs[f"{IN_PROJ}{kind}"] = torch.cat(parts)
    return theirs | {name: theirs[name].reshape(1) for name in SCALARS}


def apart(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors with the queries, keys and values of attention pooling apart, and scale and bias as numbers."""
    found = {name: t.reshape(()) if name in SCALARS and t.numel() == 1 else t for name, t in theirs.items()}
    for kind in ("weight", "bias"):
        if (joined := found.pop(f"{IN_PROJ}{kind}", None)) is not None:
            for part, tensor in zip("qkv", joined.chunk(3), strict=True):
                found[f"vision_model.head.attention.{part}_proj.{kind}"] = tensor
    return found


def _check_kind(theirs: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Raises UserError for SigLIPs that are no SigLIP 2 for fixed resolutions."""
    patches = theirs.get("vision_model.embeddings.patch_embedding.weight")
    if config.get("model_type") == "siglip2" or (patches is not None and patches.dim() == 2):
        raise UserError("a SigLIP 2 of the kind NaFlex, which takes pictures of any shape: that is not done here")
    words = theirs.get("text_model.embeddings.token_embedding.weight")
    if words is not None and len(words) in VOCABULARIES_OF_SIGLIP:
        raise UserError(f"a SigLIP (1): its {len(words):,} tokens are not those of SigLIP 2, and it pads with </s>")
    if not config:
        raise UserError("tensors without a config.json, which says how many attention heads there are")


def _recognise(theirs: dict[str, Tensor], config: dict[str, Any]) -> tuple[Recognised, TextTower, int]:
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    for tower, said in (("image", vision), ("text", text)):
        if other := [f"{k} {said[k]!r}" for k, here in AS_IN_CONFIG.items() if said.get(k, here) != here]:
            raise UserError(f"{', '.join(other)} of its {tower} tower; a SigLIP 2 has {AS_IN_CONFIG}")
    patches, places, hidden, words, positions, text_hidden = keystones(
        theirs,
        {
            "vision_model.embeddings.patch_embedding.weight": 4,
            "vision_model.embeddings.position_embedding.weight": 2,
            "vision_model.encoder.layers.0.mlp.fc1.weight": 2,
            "text_model.embeddings.token_embedding.weight": 2,
            "text_model.embeddings.position_embedding.weight": 2,
            "text_model.encoder.layers.0.mlp.fc1.weight": 2,
        },
    )
    width, stride, side = patches[0], patches[-1], side_of(places[0])
    image_size = vision.get("image_size", 224)
    if not isinstance(image_size, int) or side**2 != places[0] or image_size // stride != side:
        raise UserError(
            f"image_size of its config.json is {image_size!r}, but there are {places[0]} positions for patches of "
            f"{stride} pixels: {math.sqrt(places[0]) * stride:g} x {math.sqrt(places[0]) * stride:g} pixels"
        )
    layers, heads = num_numbered(theirs, "vision_model.encoder.layers.12345.norm"), _heads(vision, width)
    size = next((s for s, shape in SIGLIP2_SIZES.items() if shape == (width, layers, heads, hidden[0])), None)
    known = (model.image_tower for model in MODELS.values())
    tower = next((t for t in known if t.name.startswith(f"vit_{size}_patch{stride}_siglip_")), None)
    if tower is None:
        options: Options = {"patch_size": stride, "embed_dim": width, "depth": layers, "num_heads": heads}
        tower = ImageTower(name=ANY, options={**SIGLIP2_VIT, **options, "mlp_ratio": hidden[0] / width})
    text_options: Options = {
        "hidden_size": words[1],
        "num_hidden_layers": num_numbered(theirs, "text_model.encoder.layers.12345.norm"),
        "num_attention_heads": _heads(text, words[1]),
        "intermediate_size": text_hidden[0],
        "max_position_embeddings": positions[0],
    }
    return (
        Recognised(for_size(tower, image_size), image_size, stride),
        TextTower(name=SIGLIP_TEXT, options=text_options),
        words[0],
    )


def _heads(config: dict[str, Any], width: int) -> int:
    heads = config.get("num_attention_heads", HEADS)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"num_attention_heads of its config.json is {heads!r}, which do not share {width} numbers")
    return heads
