"""DVC stage of the ablation: all arms and seeds as `reports/ablation.json`, and as a table on the way out."""

import json
from pathlib import Path

from stages.command import run


def main(arms: Path, out: Path, params_file: Path = Path("params.yaml")) -> None:
    from clip_core.evaluate.ablation import compare
    from clip_core.evaluate.table import ablation_table
    from clip_core.files import atomic_write
    from clip_core.params_file import load_params
    from stages.ablation_arms import arms_of

    params = load_params(params_file)
    runs = [
        json.loads((arms / f"{arm}-{seed}.json").read_text())
        for arm in arms_of(params)
        for seed in params.ablation.seeds
    ]
    found = compare(runs, params.evaluate, params.seed)
    atomic_write(out, json.dumps(found, indent=1) + "\n")
    print(f"{ablation_table(found)}\n{found['claim']}")


if __name__ == "__main__":
    run(main)
