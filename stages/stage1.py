"""DVC stage: stage 1, the image tower frozen."""

from pathlib import Path

from clip_core.config.intervals import Intervals
from clip_core.config.loader import Loader
from clip_core.config.section import Section, Seed
from clip_core.config.stage1 import Stage1
from clip_core.config.train import Train
from stages.command import run


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
    from clip_core.train.setup import Setup
    from stages.training import Paths, train_stage

    setup = Setup.of(params.stage1, params.seed)
    train_stage("stage1", "stages.stage1", setup, intervals.stage1, loader, Paths(packed, start, out, curves), train)


if __name__ == "__main__":
    run(main)
