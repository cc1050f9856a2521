"""DVC stage of the ablation: the stage `init` with another seed."""

from pathlib import Path

from clip_core.config.intervals import Intervals
from clip_core.config.loader import Loader
from stages.command import run
from stages.init import Start, warm_start


def main(
    params: Start, intervals: Intervals, loader: Loader, packed: Path, text_start: Path, seed: int, out: Path
) -> None:
    curves = Path(".work/ablation") / out.name
    warm_start(params, seed, "stages.ablation_start", intervals.warm_start, loader, packed, text_start, out, curves)


if __name__ == "__main__":
    run(main)
