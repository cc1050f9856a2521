"""DVC stage: stage 2, everything trains."""

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
    train_stage("stage2", params.stage2, params.seed, whole_pictures, packed, start, out, curves)


def whole_pictures(model: "CLIP", pictures: "Pictures", num_pictures: int) -> "tuple[Pictures, Encode]":
    """The pictures themselves."""
    return pictures, model.encode_images


if __name__ == "__main__":
    run(main)
