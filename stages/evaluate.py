"""DVC stage: a model's metrics on one benchmark (a held-out split), with those of earlier models beside them."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clip_core.config.evaluation import Evaluate
from clip_core.config.export import Width
from clip_core.config.section import Section, Seed
from stages.command import run


class Params(Section):
    seed: Seed
    evaluate: Evaluate
    width: Annotated[Width, Field(alias="export.width")]


def main(
    params: Params,
    packed: Path,
    benchmark: str,
    model: Path,
    others: tuple[Path, ...],
    out: Path,
) -> None:
    from clip_core.data.store import open_store
    from clip_core.evaluate.benchmark import read_benchmark
    from clip_core.evaluate.embed import embed
    from clip_core.evaluate.measure import details, measure
    from clip_core.evaluate.table import metrics_table
    from clip_core.files import atomic_write
    from clip_core.inference.predictor import load

    store = open_store(packed / benchmark)
    asked = read_benchmark(store)
    measured = {}
    for folder in (*others, model):
        print(f"{folder.name}: {len(asked.texts)} texts and {len(store)} pictures of {benchmark}", flush=True)
        features = embed(load(folder, width=params.width), store, asked, params.evaluate.prompt_templates)
        measured[folder.name] = measure(features, asked, params.evaluate, params.seed)
    metrics = {**measured.pop(model.name), "others": measured}
    atomic_write(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    # `features` are still the model's own, which comes last
    atomic_write(out / "details.json", json.dumps(details(features, asked), ensure_ascii=False))
    print(metrics_table(metrics, title=f"{model.name} on {benchmark}"))


if __name__ == "__main__":
    run(main)
