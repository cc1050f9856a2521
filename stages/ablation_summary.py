"""DVC stage of the ablation: all arms and seeds as `reports/ablation.json`, and as a table on the way out."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clip_core.config.ablation import Seeds
from clip_core.config.evaluation import Confidence
from clip_core.config.section import Section
from stages.command import run


class Params(Section):
    confidence: Annotated[Confidence, Field(alias="evaluate.confidence")]
    seeds: Annotated[Seeds, Field(alias="ablation.seeds")]


def main(params: Params, arms: Path, out: Path) -> None:
    from clip_core.evaluate.ablation import compare
    from clip_core.evaluate.table import ablation_table
    from clip_core.files import atomic_write
    from stages.ablation_arms import NAMES

    runs = [
        json.loads((arms / f"{arm}-{seed}.json").read_text(encoding="utf-8")) for arm in NAMES for seed in params.seeds
    ]
    found = compare(runs, params.confidence)
    atomic_write(out, json.dumps(found, indent=1) + "\n")
    print(f"{ablation_table(found)}\n{found['claim']}")


if __name__ == "__main__":
    run(main)
