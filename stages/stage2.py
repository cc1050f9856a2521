"""DVC stage: stage 2, everything trains."""

from pathlib import Path

from clip_core.config.intervals import Intervals
from clip_core.config.loader import Loader
from clip_core.config.section import Section, Seed
from clip_core.config.stage2 import Stage2
from clip_core.config.train import Train
from stages.command import run


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
    from clip_core.train.setup import Setup
    from stages.training import Paths, train_stage

    setup = Setup.of(params.stage2, params.seed)
    train_stage("stage2", "stages.stage2", setup, intervals.stage2, loader, Paths(packed, start, out, curves), train)


if __name__ == "__main__":
    run(main)
