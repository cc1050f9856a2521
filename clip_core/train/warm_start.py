"""The warm start: the image tower learns as an English CLIP, which is what the paper takes it from."""

from pathlib import Path

from clip_core.config.intervals import Interval
from clip_core.config.loader import IN_PROCESS, Loader
from clip_core.config.training import Training
from clip_core.data.batches import TrainingBatches
from clip_core.data.captions import texts_of_store
from clip_core.data.pictures import decoded
from clip_core.data.store import Store
from clip_core.model.clip import CLIP, make_clip
from clip_core.model.contract import Architecture
from clip_core.text import build_tokenizer, parse_tokenizer
from clip_core.train.loop import train


def english_clip(
    params: Training,
    architecture: Architecture,
    store: Store,
    seed: int,
    work: Path,
    interval: Interval,
    loader: Loader = IN_PROCESS,
) -> CLIP:
    """A CLIP of this architecture, trained with the captions of `params`; only its tokenizer, thrown away, differs."""
    tokenizer_json = build_tokenizer(texts_of_store(store, params.captions))
    tokenizer = parse_tokenizer(tokenizer_json, architecture.context_length)
    text_tower = architecture.text_tower.model_copy(update={"vocab_size": tokenizer.vocab_size})
    model = make_clip(architecture.model_copy(update={"text_tower": text_tower}), seed)
    pictures = decoded(store, architecture.image_size, architecture.preprocessing, params.decoding)
    with TrainingBatches(store, pictures, tokenizer, params, seed, loader) as batches:
        train(batches, model, model.encode_images, work, interval)
    return model


def take_image_side(model: CLIP, source: CLIP) -> None:
    """Gives `model` the image tower of `source`, its projection and its logit_scale."""
    model.image_tower.load_state_dict(source.image_tower.state_dict())
    model.image_projection.load_state_dict(source.image_projection.state_dict())
    model.logit_scale.data.copy_(source.logit_scale.data)
