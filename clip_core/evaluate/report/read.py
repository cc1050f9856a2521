"""A finished run, read from the files that its stages left behind."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_core.data.store import open_store
from clip_core.evaluate.report.before import Before
from clip_core.evaluate.report.queries import ReadImage

if TYPE_CHECKING:
    import pandas as pd

COUNTED = {"ingest": "raw", "validate": "valid", "curate": "curated"}  # stage -> its folder
TRAINED = ("init", "stage1", "stage2")
TOWERS = ("text", "image")


@dataclass(frozen=True)
class Run:
    """What the pipeline left behind."""

    metrics: Mapping  # of the test benchmark
    confidence: float
    details: Mapping  # of the test benchmark
    read_image: ReadImage
    curves: Mapping[str, Mapping[str, list[tuple[float, float]]]]  # stage -> loss, recall -> (step, value)
    counts: Mapping[str, Mapping]  # data stage -> counts
    pairs: Mapping[str, "pd.DataFrame"]  # split -> its packed pairs
    validation: Mapping
    model: Mapping  # model.json
    num_bytes: Mapping[str, int]  # tower -> of its exported file
    parity: Mapping
    deploy: Mapping
    ablation: Mapping | None
    benchmarks: Mapping  # the table of `make benchmark`: rows, comparisons
    before: Before | None


def read_run(reports: Path, data: Path, onnx: Path, confidence: float, before: Before | None) -> Run:
    """Everything that the page shows."""
    stores = {split: open_store(data / "packed" / split) for split in ("train", "valid", "test")}
    test = stores["test"]
    place = {image_id: i for i, image_id in enumerate(test.image_ids)}
    ablation, table = reports / "ablation.json", reports / "benchmarks" / "table.json"
    return Run(
        metrics=_json(reports / "test" / "metrics.json"),
        confidence=confidence,
        details=_json(reports / "test" / "details.json"),
        read_image=lambda image_id: test.image_bytes(place[image_id]),
        curves={stage: _curves(reports / stage) for stage in TRAINED},
        counts={stage: _json(data / folder / "counts.json") for stage, folder in COUNTED.items()},
        pairs={split: store.pairs for split, store in stores.items()},
        validation=_json(reports / "validation" / "validation.json"),
        model=_json(onnx / "model.json"),
        num_bytes={tower: sum(file.stat().st_size for file in onnx.glob(f"{tower}.onnx*")) for tower in TOWERS},
        parity=_json(onnx / "parity.json"),
        deploy=_json(reports / "deploy.json"),
        ablation=_json(ablation) if ablation.exists() else None,
        benchmarks=_json(table) if table.exists() else {"rows": [], "comparisons": []},
        before=before,
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    return {
        "loss": _column(folder / "train.csv", "loss"),
        "recall": _column(folder / "validation.csv", "text_to_image_mean_recall"),
    }


def _column(path: Path, name: str) -> list[tuple[float, float]]:
    """(step, value) of one curve; a training without validation has no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [(float(row["step"]), float(row[name])) for row in csv.DictReader(file)]
