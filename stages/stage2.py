"""DVC stage: stage 2, everything trains."""

from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.config.intervals import Intervals
from clip_core.config.loader import Loader
from clip_core.config.section import Section, Seed
from clip_core.config.stage2 import Stage2
from clip_core.config.train import Train
from stages.command import run

if TYPE_CHECKING:
    from clip_core.train.setup import Setup


class Params(Section):
    seed: Seed
    stage2: Stage2


def main(
    params: Params,
    intervals: Intervals,
    loader: Loader,
    train: Train,
    packed: Path,
    start: Path,
    out: Path,
    curves: Path,
) -> None:
    """Trains the weights in `start` on the pairs in `packed`; the new ones go to `out`, the curves to `curves`."""
    from stages.training import Paths, train_stage

    setup = setup_of(params.stage2, params.seed)
    train_stage("stage2", "stages.stage2", setup, intervals.stage2, loader, Paths(packed, start, out, curves), train)


def setup_of(stage2: Stage2, seed: int) -> "Setup":
    from clip_core.train.setup import Setup

    files = Path(stage2.path)
    return Setup(stage2, seed, False, stage2.patch_dropout, stage2.lora, distill=stage2.distill, files=files)


if __name__ == "__main__":
    run(main)
