"""MUGE's shape at full size (129,380 + 29,806 pictures, 250,314 pairs), from TSV to an evaluated tiny model, by stage.

`SHARE=0.1` in the environment makes a tenth of it.
"""

import json
import os
import tempfile
from pathlib import Path

from clip_core.recipe import apply_recipes
from tests.conftest import new_project
from tests.made_pairs import write_muge
from tests.watched import counts_of, repro_each, size_of

DATA = ("check", "ingest", "validate", "curate", "pack")
TRAINING = ("text_start", "init", "stage1", "stage2", "evaluate@valid", "evaluate@test")
OVERLAY = """
data: {path: my_pairs/MUGE}
init:
  warm_start: {schedule: {num_steps: 100, warmup_steps: 5}, captions: {language: zh}}
stage1: {schedule: {num_steps: 50, warmup_steps: 5}}
stage2: {schedule: {num_steps: 100, warmup_steps: 5}}
evaluate: {num_bootstrap: 200}
"""


def prove() -> dict:
    """Seconds and peak memory of each stage, sizes, and the benchmark's queries and candidates."""
    share = float(os.environ.get("SHARE", "1"))
    with tempfile.TemporaryDirectory() as scratch:
        project = new_project(Path(scratch) / "project")
        source = project / "my_pairs" / "MUGE"
        write_muge(source, share)
        print(f"made {size_of(source) / 2**30:.2f} GiB of TSV and JSONL", flush=True)
        (project / "overlay.yaml").write_text(OVERLAY, encoding="utf-8")
        apply_recipes([project / "recipes" / "muge.yaml", project / "overlay.yaml"], project / "params.yaml")
        stages = repro_each(project, (*DATA, *TRAINING))
        metrics = json.loads((project / "reports" / "test" / "metrics.json").read_text(encoding="utf-8"))
        return {
            "share": share,
            "stages": stages,
            "seconds_in_all": round(sum(stage["seconds"] for stage in stages.values()), 1),
            "source_bytes": size_of(source),
            "packed_bytes": size_of(project / "data" / "packed"),
            "counts": counts_of(project),
            "benchmark": {name: metrics["all"][name] for name in ("num_queries", "num_candidates", "mean_recall")},
        }
