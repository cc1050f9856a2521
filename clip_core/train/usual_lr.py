"""Whether a learning rate is far from all recipes': what others found for a batch of that size."""

import numpy as np

from clip_core.config.training import Training

FAR = 4
# Global batch -> the highest peak learning rate of the recipes: the notebook's finetuning (ViT-B/16 on MUGE), table 9
# of the paper, and its pretraining, whose stage 1 trains one tower from a random projection on.
USUAL = {48: 3e-6, 4_096: 6e-5, 12_800: 5e-5, 24_576: 6e-5, 32_768: 1e-4}


def usual_lr(global_batch: int) -> float:
    """Interpolated on logarithmic scales, and that of the nearest beyond both ends."""
    return float(np.exp(np.interp(np.log(global_batch), np.log(list(USUAL)), np.log(list(USUAL.values())))))


def unusual_lr(name: str, params: Training) -> str | None:
    """A line of warning where weights that were trained before would be led away too fast.

    It is for pretrained weights alone: a model that starts at random has nothing to lose, and the small built-in one
    learns best with a thousand times these rates.
    """
    usual, lr = usual_lr(params.global_batch), params.schedule.peak_lr
    if lr <= FAR * usual:
        return None
    return (
        f"warning: {name}.schedule.peak_lr is {lr:.1e} with a global batch of {params.global_batch:,}, where recipes "
        f"have at most {usual:.0e} (recipes/README.md): pretrained weights may get worse than they were"
    )
