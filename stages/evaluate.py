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
    from clip_core.evaluate.measure import compare, details, free_answers, measure
    from clip_core.evaluate.probes import probes
    from clip_core.evaluate.recall_curves import recall_curves
    from clip_core.evaluate.reliability import calibrate
    from clip_core.evaluate.slices import slices
    from clip_core.evaluate.table import metrics_table
    from clip_core.files import atomic_write
    from clip_core.inference.predictor import load

    store = open_store(packed / benchmark)
    asked = read_benchmark(store)
    how, found, free = (params.evaluate, params.seed), {}, params.evaluate.free_queries
    for folder in (*others, model):
        print(f"{folder.name}: {len(asked.texts)} texts and {len(store)} pictures of {benchmark}", flush=True)
        predictor = load(folder, width=params.width)
        found[folder.name] = embed(predictor, store, asked, params.evaluate.prompt_templates)
    features, weights = found.pop(model.name), predictor.weights_id  # the model itself comes last
    metrics = measure(features, asked, *how)
    metrics["others"] = {
        name: measure(other, asked, *how) | {"differences": compare(features, other, asked, *how)}
        for name, other in found.items()
    }
    calibration, bins = calibrate(features, asked, weights)
    told = {
        "slices": slices(features, asked, *how),
        "calibration": {"bins": bins},
        "recall_curves": {name: recall_curves(one, asked) for name, one in {**found, model.name: features}.items()},
        "confused": confused(features, asked),
        "free": free_answers(free, predictor.encode_texts(free), features.images, asked.image_ids) if free else [],
        "probes": probes(predictor.encode_texts, features, asked, *how),  # of the model itself, too
    }
    atomic_write(out / "calibration.json", calibration.model_dump_json(indent=1) + "\n")
    atomic_write(out / "details.json", json.dumps(details(features, asked) | told, ensure_ascii=False))
    atomic_write(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    print(metrics_table(metrics, title=f"{model.name} on {benchmark}"))


if __name__ == "__main__":
    run(main)
