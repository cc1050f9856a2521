"""Starting weights from elsewhere: an English CLIP's image side with a Chinese BERT, or a whole Chinese CLIP."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_core.config.init import FromTowers, FromWeights
from clip_core.config.model import CustomModel, ImageTower, NamedModel, TextTower
from clip_core.errors import UserError
from clip_core.files import sha256_file
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.contract import MODEL_FILE, TOKENIZER_FILE, Architecture, read_contract, weights_id
from clip_core.model.pretrained.checkpoint import Checkpoint, read_checkpoint
from clip_core.model.pretrained.image_side import ImageSide, image_side_in, prepared_for
from clip_core.model.pretrained.positions import resize_all_positions
from clip_core.model.pretrained.whole import whole_in
from clip_core.model.registry import MODELS, Shape, shape_of
from clip_core.model.text_start import text_start
from clip_core.model.weights import load_weights, without_weights
from clip_core.params_file import existing

Model = NamedModel | CustomModel
OF_TRAINING = ("hidden_dropout_prob", "attention_probs_dropout_prob")  # not of the weights: params decide
OF_INPUTS = ("max_position_embeddings",)


@dataclass(frozen=True)
class Start:
    """A model to start from, and what model.json says of it."""

    model: CLIP
    tokenizer_json: str
    origin: str
    parent: str | None  # weights_id of the folder that it is


def start_from_towers(model: Model, init: FromTowers, seed: int) -> Start:
    """The paper's start: the image side of one model, the BERT of another, a random text projection between them."""
    shape, source = shape_of(model), Path(init.path) / init.image_tower
    checkpoint = read_checkpoint(existing(source, "init.image_tower"))
    side = _image_side(checkpoint, model, shape.image_tower)
    text = text_start(shape, model.context_length, str(Path(init.path) / init.bert_folder), [])
    _check(model, Path(init.path) / init.bert_folder, text_differences(shape.text_tower, text.architecture))
    architecture = Architecture(
        image_tower=shape.image_tower,
        text_tower=text.architecture.model_copy(update={"options": _dropouts(text.architecture, shape)}),
        embed_dim=shape.embed_dim,
        image_size=model.image_size,
        context_length=model.context_length,
        preprocessing=prepared_for(shape.image_tower),
        matryoshka=model.matryoshka,
    )
    made = make_clip(architecture, seed)
    text.fill(made.text_tower)
    projection = made.text_projection  # drawn by itself, so that it is the same whatever the image tower is
    drawn = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(projection.weight, std=projection.in_features**-0.5, generator=drawn)
    _take(made, side, source)
    return Start(made, text.tokenizer_json, f"{text.origin}, image tower {_sums(checkpoint.source)}", parent=None)


def start_from_weights(model: Model, init: FromWeights) -> Start:
    """A Chinese CLIP: released, or made here."""
    source = existing(Path(init.path) / init.weights, "init.weights")
    vocabulary = None if init.vocabulary is None else existing(Path(init.path) / init.vocabulary, "init.vocabulary")
    if (source / MODEL_FILE).exists():
        found, tokenizer_json = load_weights(source), (source / TOKENIZER_FILE).read_text(encoding="utf-8")
        origin, parent = read_contract(source).made.text_tower, weights_id(source)
    else:
        released = whole_in(read_checkpoint(source), vocabulary, None, model.context_length)
        found, tokenizer_json = released.model, released.tokenizer_json
        origin, parent = f"Chinese CLIP {_sums(source)}", None
    shape, has = shape_of(model), found.architecture
    _check(model, source, differences(shape, has))
    limit = has.text_tower.options.get("max_position_embeddings")
    if isinstance(limit, int) and model.context_length > limit:
        raise UserError(f"model.context_length is {model.context_length}, but {source} has {limit} positions")
    update = {
        "image_tower": shape.image_tower,  # but for the size in its name as in the weights
        "text_tower": has.text_tower.model_copy(update={"options": _dropouts(has.text_tower, shape)}),
        "image_size": model.image_size,
        "context_length": model.context_length,
        "matryoshka": model.matryoshka,
    }
    fitted = without_weights(has.model_copy(update=update))
    fitted.load_state_dict(resize_all_positions(found.state_dict(), fitted.state_dict()), assign=True)
    return Start(fitted, tokenizer_json, origin, parent)


def differences(shape: Shape, found: Architecture) -> Iterator[str]:
    """What the model in `found` is that one of `shape` is not; the size of its pictures can be changed."""
    if _without_size(shape.image_tower) != _without_size(found.image_tower):
        yield f"the image tower {_told(found.image_tower)} instead of {_told(shape.image_tower)}"
    yield from text_differences(shape.text_tower, found.text_tower)
    if shape.embed_dim != found.embed_dim:
        yield f"embed_dim {found.embed_dim} instead of {shape.embed_dim}"


def text_differences(wanted: TextTower, found: TextTower) -> Iterator[str]:
    """What the text tower `found` is that the wanted one is not."""
    if wanted.name != found.name:
        yield f"the text tower {found.name} instead of {wanted.name}"
        return
    for name, value in wanted.options.items():
        if name not in (*OF_TRAINING, *OF_INPUTS) and found.options.get(name) != value:
            yield f"{name} {found.options.get(name)} instead of {value}"


def _without_size(tower: ImageTower) -> ImageTower:
    return tower.model_copy(update={"name": re.sub(r"_\d{3}$", "", tower.name)})  # of the pictures a ViT is for


def _check(model: Model, source: Path, found: Iterator[str]) -> None:
    """Raises UserError where `found` names differences between `model` and what lies in `source`."""
    if listed := list(found):
        raise UserError(f"model.name is {model.name}, but {source} has {', '.join(listed)}. Make them agree.")


def _image_side(checkpoint: Checkpoint, model: Model, wanted: ImageTower) -> ImageSide:
    try:
        side = image_side_in(checkpoint, wanted, model.image_size)
    except ValueError as error:
        recognised = image_side_in(checkpoint).recognised  # raises where the file itself is at fault
        if _without_size(recognised) == _without_size(wanted):
            raise
        fits = [name for name, known in MODELS.items() if known.image_tower == recognised]
        raise UserError(
            f"model.name is {model.name}, whose image tower is {_told(wanted)}, but {checkpoint.source} has "
            f"{_told(recognised)}{f' (that of {fits[0]})' if fits else ''}. Make them agree."
        ) from error
    if _without_size(side.recognised) != _without_size(wanted):
        print(f"{checkpoint.source} is {side.recognised.name}; its tensors go into {wanted.name}", flush=True)
    return side


def _told(tower: ImageTower) -> str:
    return f"{tower.name} with {tower.options}" if tower.options else tower.name


def _take(model: CLIP, side: ImageSide, source: Path) -> None:
    """Puts the image side into the model; says what the source does not have."""
    model.image_tower.load_state_dict(side.tower)
    if isinstance(model.image_projection, nn.Identity):
        pass  # the tower's own features
    elif side.projection is None:
        print(f"{source} has no projection to {model.architecture.embed_dim} dimensions: a random one", flush=True)
    else:
        tensors: dict[str, Tensor] = {"weight": side.projection}
        if side.projection_bias is not None:
            tensors["bias"] = side.projection_bias
        if side.projection.shape != model.image_projection.weight.shape:
            raise UserError(
                f"model's embed_dim is {model.architecture.embed_dim}, but the projection in {source} leads to "
                f"{len(side.projection)} dimensions. Make them agree."
            )
        model.image_projection.load_state_dict(tensors)
    if side.logit_scale is None:
        print(f"{source} has no logit_scale: CLIP's own start, ln(1/0.07) = {math.log(1 / 0.07):.4f}", flush=True)
    else:
        model.logit_scale.data.copy_(torch.tensor(side.logit_scale))


def _dropouts(found: TextTower, shape: Shape) -> dict:
    """The options of `found` with the dropout of the params."""
    wanted = shape.text_tower.options
    return {**found.options, **{name: wanted[name] for name in OF_TRAINING if name in wanted}}


def _sums(source: Path) -> str:
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    return " ".join(sha256_file(path)[:16] for path in files if path.suffix in (".pt", ".pth", ".bin", ".safetensors"))
