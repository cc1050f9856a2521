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
    from clip_core.evaluate.confusion import confused
    from clip_core.evaluate.embed import embed
    from clip_core.evaluate.measure import compare, details, measure
    from clip_core.evaluate.probes import probes
    from clip_core.evaluate.recall_curves import recall_curves
    from clip_core.evaluate.table import metrics_table
    from clip_core.files import atomic_write
    from clip_core.inference.predictor import load

    store = open_store(packed / benchmark)
    asked = read_benchmark(store)
    measured, found = {}, {}
    for folder in (*others, model):
        print(f"{folder.name}: {len(asked.texts)} texts and {len(store)} pictures of {benchmark}", flush=True)
        predictor = load(folder, width=params.width)
        features = embed(predictor, store, asked, params.evaluate.prompt_templates)
        measured[folder.name] = measure(features, asked, params.evaluate, params.seed)
        found[folder.name] = features
    metrics = {**measured.pop(model.name), "others": measured}
    atomic_write(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    # `predictor` and `features` are still the model's own, which comes last
    told = details(features, asked) | {
        "recall_curves": {name: recall_curves(one, asked) for name, one in found.items()},
        "differences": {name: compare(features, found[name], asked, params.evaluate, params.seed) for name in measured},
        "confused": confused(features, asked),
        "probes": probes(predictor.encode_texts, features, asked, params.evaluate, params.seed),
    }
    atomic_write(out / "details.json", json.dumps(told, ensure_ascii=False))
    print(metrics_table(metrics, title=f"{model.name} on {benchmark}"))


if __name__ == "__main__":
    run(main)
