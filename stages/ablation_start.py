"""DVC stage of the ablation: the stage `init` with another seed."""

import json
from pathlib import Path

from stages.command import run


def main(packed: Path, seed: int, out: Path, params_file: Path = Path("params.yaml")) -> None:
    from clip_core.files import atomic_write
    from clip_core.params_file import read_yaml
    from clip_core.recipe import merged
    from stages import init

    work = Path(".work/ablation") / out.name
    atomic_write(work / "params.yaml", json.dumps(merged(read_yaml(params_file), {"seed": seed})))
    init.main(packed, out, curves=work / "curves", params_file=work / "params.yaml")


if __name__ == "__main__":
    run(main)
