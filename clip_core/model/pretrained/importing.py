"""Brings a checkpoint in: a whole CLIP as a weights folder, half a CLIP as a folder that stage init reads."""

import json
import time
from pathlib import Path

from clip_core.config.model import Options
from clip_core.config.section import hash_of
from clip_core.errors import UserError
from clip_core.files import atomic_write, replacing_folder
from clip_core.image import AS_RELEASED
from clip_core.model.contract import Made
from clip_core.model.pretrained.checkpoint import Checkpoint, read_checkpoint
from clip_core.model.pretrained.image_side import image_side_in, prepared_for, timm_folder
from clip_core.model.pretrained.released import CONTEXT_LENGTH
from clip_core.model.pretrained.released_vocabulary import is_released
from clip_core.model.pretrained.saving import check_import_place, save_tensors
from clip_core.model.pretrained.whole import is_whole, whole_in
from clip_core.model.text_start import UNUSED_OF_BERT, architecture_of_bert, load_bert
from clip_core.model.text_tower import TextTower
from clip_core.model.weights import save_weights
from clip_core.text import parse_tokenizer, tokenizer_of_vocabulary

MIB = 2**20


def import_checkpoint(
    source: Path, folder: Path, vocab: Path | None, image_size: int | None, context_length: int | None = None
) -> None:
    """Writes what `source` holds to `folder`, whole or not at all, and says what it was recognised as.

    Raises UserError when `folder` is there already, unless it is an earlier import.
    """
    start = time.monotonic()
    check_import_place(folder, source, *([vocab] if vocab else []))
    checkpoint = read_checkpoint(source)
    num_tensors = len(checkpoint.tensors)
    print(f"{source}: {num_tensors:,} tensors, {checkpoint.num_bytes / MIB:,.0f} MiB", flush=True)
    if is_whole(checkpoint):
        _import_whole(checkpoint, folder, vocab, image_size, context_length)
    elif any(name.endswith("embeddings.word_embeddings.weight") for name in checkpoint.tensors):
        _refuse(source, "a BERT", {"vocab": vocab, "image-size": image_size, "context-length": context_length})
        _import_bert(checkpoint, folder)
    else:
        _refuse(source, "an image tower", {"vocab": vocab, "context-length": context_length})
        _import_image_side(checkpoint, folder, image_size)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"wrote {folder}: {size / MIB:,.0f} MiB in {time.monotonic() - start:.1f} s")


def _refuse(source: Path, kind: str, options: dict[str, object]) -> None:
    """Raises UserError when one of the options is given, none of which means anything for half a CLIP."""
    if given := [f"--{name} {value}" for name, value in options.items() if value is not None]:
        raise UserError(
            f"{', '.join(given)}: {source} is half a CLIP, {kind}, for which this means nothing; leave it out"
        )


def _import_whole(
    checkpoint: Checkpoint, folder: Path, vocab: Path | None, image_size: int | None, context_length: int | None
) -> None:
    released = whole_in(checkpoint, vocab, image_size, context_length)
    model, architecture = released.model, released.model.architecture
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    image, text = architecture.image_tower, architecture.text_tower
    print(f"recognised as {released.name}: {num_parameters:,} parameters", flush=True)
    size = architecture.image_size
    print(f"  image tower {image.name} {_spelt(image.options)}for {size} x {size} pixels")
    print(f"  text tower {text.name}, {text.options['num_hidden_layers']} layers {text.options['hidden_size']} wide")
    vocabulary = "the released one" if is_released(released.vocabulary) else "its own"
    print(f"  vocabulary {released.vocabulary} ({vocabulary}), {text.vocab_size:,} tokens")
    here = architecture.preprocessing
    prepared = ", ".join(f"{name} {getattr(here, name)}" for name in ("convert", "orientation", "grey16", "background"))
    print(f"  preprocessing {'as released' if here == AS_RELEASED else 'its own'}: {here.resize}, {prepared}")
    if (here.mean, here.std) != (AS_RELEASED.mean, AS_RELEASED.std):
        print(f"  mean {here.mean}, std {here.std}")
    print(f"  texts are cut at {architecture.context_length} tokens")
    _say_unused(released.unused)
    made = Made(
        stage="import",
        params=hash_of({"image_size": image_size, "context_length": architecture.context_length}),
        data=checkpoint.fingerprint(),
        parent=None,
        text_tower="imported with the image tower",
    )
    save_weights(model, released.tokenizer_json, folder, made)
    print(f"next: python -c \"import clip_core; print(clip_core.load('{folder}').encode_texts(['hello']).shape)\"")
    print(f"to serve it with a folder of pictures: python -m clip_core.serve.gallery {folder} PICTURES OUT")
    print(f"to train on: move it into pretrained/; in params.yaml init {{from: weights, weights: {folder.name}, ...}}")


def _import_bert(checkpoint: Checkpoint, folder: Path) -> None:
    source = checkpoint.source
    if not source.is_dir():
        raise UserError(f"{source}: a BERT without its config.json and vocab.txt; give the folder that holds all three")
    if not (source / "vocab.txt").exists():
        raise UserError(f"{source}: no BERT folder: it has no vocab.txt")
    vocab_size = parse_tokenizer(tokenizer_of_vocabulary(source / "vocab.txt"), CONTEXT_LENGTH).vocab_size
    architecture = architecture_of_bert(source, vocab_size)
    tower = TextTower(architecture)
    load_bert(tower, checkpoint)
    config = {"model_type": "bert", "hidden_act": "gelu", "vocab_size": vocab_size, **architecture.options}
    with replacing_folder(folder) as aside:
        save_tensors(tower.encoder.state_dict(), aside / "model.safetensors")
        atomic_write(aside / "config.json", _json({**config, "source": checkpoint.fingerprint()}))
        atomic_write(aside / "vocab.txt", (source / "vocab.txt").read_bytes())
    num_parameters = sum(parameter.numel() for parameter in tower.parameters())
    print(f"recognised as a BERT: {num_parameters:,} parameters, {vocab_size:,} tokens")
    _say_unused([name for name in checkpoint.tensors if UNUSED_OF_BERT.fullmatch(name)])
    print(f"half a CLIP, to start training from: in params.yaml init {{from: towers, bert_folder: {folder.name}, ...}}")


def _import_image_side(checkpoint: Checkpoint, folder: Path, image_size: int | None) -> None:
    side = image_side_in(checkpoint, None, image_size)
    tensors, config = timm_folder(side, prepared_for(side.recognised))
    with replacing_folder(folder) as aside:
        save_tensors(tensors, aside / "model.safetensors")
        atomic_write(aside / "config.json", _json({**config, "source": checkpoint.fingerprint()}))
    num_parameters = sum(tensor.numel() for tensor in side.tower.values())
    tower, size = side.recognised, side.image_size
    print(f"recognised as an image tower: {tower.name} {_spelt(tower.options)}for {size} x {size} pixels")
    print(f"  {num_parameters:,} numbers")
    print("  projection " + ("none" if side.projection is None else f"to {len(side.projection)} dimensions"))
    print("  logit_scale " + ("none" if side.logit_scale is None else f"{side.logit_scale:.4f}"))
    print(f"half a CLIP, to start training from: in params.yaml init {{from: towers, image_tower: {folder.name}, ...}}")


def _json(content: dict) -> str:
    return json.dumps(content, indent=2) + "\n"


def _spelt(options: Options) -> str:
    return "".join(f"{name}={value} " for name, value in options.items())


def _say_unused(names: list[str]) -> None:
    if names:
        print(f"  left out, as no feature depends on them: {', '.join(names)}")
