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
    from clip_core.train.lora import add_adapters
    from clip_core.train.patch_dropout import drop_patches
    from stages.training import train_stage

    params = load_params(params_file)

    def whole_pictures(model: "CLIP", pictures: "Pictures", num_pictures: int) -> "tuple[Pictures, Encode]":
        """The pictures themselves."""
        if params.stage2.patch_dropout:
            drop_patches(model, params.stage2.patch_dropout)
        if params.stage2.lora:
            add_adapters(model, params.stage2.lora, params.seed)
        return pictures, model.encode_images

    train_stage("stage2", params.stage2, params.seed, whole_pictures, packed, start, out, curves)


if __name__ == "__main__":
    run(main)
