"""Whole CLIPs of others, whichever family they are of: where the next one is added."""

from pathlib import Path

from clip_core.model.clip import CLIP
from clip_core.model.pretrained.checkpoint import Checkpoint, read_checkpoint
from clip_core.model.pretrained.released import Released, is_chinese_clip, released_in
from clip_core.model.pretrained.siglip import is_siglip, siglip_in

FAMILIES = ((is_siglip, siglip_in), (is_chinese_clip, released_in))


def is_whole(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has both sides of a CLIP."""
    return any(is_of_family(checkpoint) for is_of_family, _ in FAMILIES)


def whole_in(
    checkpoint: Checkpoint, vocab: Path | None, image_size: int | None, context_length: int | None
) -> Released:
    """The CLIP in a checkpoint; see `read_released`."""
    read = next((read for is_of_family, read in FAMILIES if is_of_family(checkpoint)), released_in)
    return read(checkpoint, vocab, image_size, context_length)


def read_released(
    source: Path, vocab: Path | None = None, image_size: int | None = None, context_length: int | None = None
) -> tuple[CLIP, str]:
    """The model (fp32, eval mode) in an OFA-Sys file or a transformers folder, and its tokenizer.json.

    `vocab` is its vocab.txt, or SigLIP's tokenizer.json. With `image_size` the positions are resized to pictures of
    that size. Texts are cut at `context_length` tokens; None: at what an export of ours says, else as in its training.
    Raises UserError that lists all that is missing, unexpected or of another shape.
    """
    released = whole_in(read_checkpoint(source), vocab, image_size, context_length)
    return released.model, released.tokenizer_json
