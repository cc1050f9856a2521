"""DVC stage: stage 1, the image tower frozen: the text tower learns from features computed once."""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.command import run

if TYPE_CHECKING:
    from clip_core.data.batches import Pictures
    from clip_core.model.clip import CLIP
    from clip_core.train.backward import Encode


def main(packed: Path, start: Path, out: Path, curves: Path, params_file: Path = Path("params.yaml")) -> None:
    from clip_core.params_file import load_params
    from stages.training import train_stage

    params = load_params(params_file)
    train_stage("stage1", params.stage1, params.seed, cached_features, packed, start, out, curves)


def cached_features(model: "CLIP", pictures: "Pictures", num_pictures: int) -> "tuple[Pictures, Encode]":
    """The frozen tower's features of the unchanged pictures instead of the pictures."""
    from clip_core.train.feature_cache import freeze_image_tower, image_features_of

    freeze_image_tower(model)
    features = image_features_of(model, pictures, num_pictures)
    return lambda rows: features[rows], lambda cached: cached


if __name__ == "__main__":
    run(main)
