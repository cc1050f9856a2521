"""DVC stage: stage 1, the image tower frozen."""

from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.config.intervals import Intervals
from clip_core.config.loader import Loader
from clip_core.config.section import Section, Seed
from clip_core.config.stage1 import Stage1
from clip_core.config.train import Train
from stages.command import run

if TYPE_CHECKING:
    from clip_core.train.setup import Setup


class Params(Section):
    seed: Seed
    stage1: Stage1


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

    setup = setup_of(params.stage1, params.seed)
    train_stage("stage1", "stages.stage1", setup, intervals.stage1, loader, Paths(packed, start, out, curves), train)


def setup_of(stage1: Stage1, seed: int) -> "Setup":
    from clip_core.train.setup import Setup

    return Setup(stage1, seed, is_image_tower_frozen=True, num_views=stage1.num_views)


if __name__ == "__main__":
    run(main)
