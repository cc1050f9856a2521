"""DVC stage: the one page that people open, and the headline metrics."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clip_core.config.evaluation import Confidence
from clip_core.config.section import Section
from stages.command import run


class Params(Section):
    confidence: Annotated[Confidence, Field(alias="evaluate.confidence")]


def main(
    params: Params,
    out: Path,
    metrics: Path,
    reports: Path = Path("reports"),
    data: Path = Path("data"),
    onnx: Path = Path("models/onnx"),
) -> None:
    from clip_core.evaluate.headline import headline
    from clip_core.evaluate.report.before import run_before
    from clip_core.evaluate.report.page import page
    from clip_core.evaluate.report.read import read_run
    from clip_core.files import atomic_write

    confidence = params.confidence
    benchmarks = {
        name: json.loads((reports / name / "metrics.json").read_text(encoding="utf-8")) for name in ("test", "valid")
    }
    figures = headline(benchmarks, confidence)
    atomic_write(metrics, json.dumps(figures, indent=1) + "\n")
    html = page(read_run(reports, data, onnx, confidence, run_before(metrics, figures)))
    atomic_write(out, html)
    print(f"report: {out}, {len(html) / 2**20:.1f} MiB, self-contained")


if __name__ == "__main__":
    run(main)
