"""DVC stage: stage 1, the image tower frozen: without augmentation its features are computed once."""

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
    is_same_each_time = params.stage1.augmentation.name == "none"
    seen = cached_features if is_same_each_time and params.stage1.schedule.num_steps != 0 else changed_pictures
    train_stage("stage1", params.stage1, params.seed, seen, packed, start, out, curves)


def cached_features(model: "CLIP", pictures: "Pictures", num_pictures: int) -> "tuple[Pictures, Encode]":
    """The frozen tower's features of the unchanged pictures instead of the pictures."""
    from clip_core.train.feature_cache import freeze_image_tower, image_features_of

    freeze_image_tower(model)
    features = image_features_of(model, pictures, num_pictures)
    return lambda rows: features[rows], lambda cached: cached


def changed_pictures(model: "CLIP", pictures: "Pictures", num_pictures: int) -> "tuple[Pictures, Encode]":
    """The pictures, which augmentation changes, and the frozen tower; its running statistics stay too."""
    import torch

    from clip_core.train.feature_cache import freeze_image_tower

    freeze_image_tower(model)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        model.image_tower.eval()
        with torch.no_grad():
            return model.encode_images(pixels)

    return pictures, encode


if __name__ == "__main__":
    run(main)
