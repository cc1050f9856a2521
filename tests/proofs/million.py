"""A million pairs from tables to packed shards: memory flat, the cost of a pair not growing, one more shard for little.

`ROWS="20000 40000"` in the environment takes other sizes.
"""

import os
import shutil
import tempfile
from pathlib import Path

from clip_core.recipe import apply_recipes
from tests import made_pairs
from tests.conftest import new_project
from tests.watched import counts_of, repro_each, size_of

STAGES = ("check", "ingest", "validate", "curate", "pack")
OVERLAY = """
data: {path: my_pairs/million, table: null}
validate: {limits: {min_side: 16}}
"""


def prove() -> dict:
    """Of each size, and of one table more than the largest: seconds, microseconds a pair and peak memory by stage."""
    sizes = [int(rows) for rows in os.environ.get("ROWS", "100000 300000 1000000").split()]
    curve = {}
    with tempfile.TemporaryDirectory() as scratch:
        project = new_project(Path(scratch) / "project")
        (project / "overlay.yaml").write_text(OVERLAY, encoding="utf-8")
        apply_recipes([project / "recipes" / "table.yaml", project / "overlay.yaml"], project / "params.yaml")
        source, written = project / "my_pairs" / "million", 0
        for size in sizes:
            tables = size // made_pairs.ROWS
            made_pairs.write_tables(source, written, tables - written)
            written = tables
            # what smaller sizes kept would be used again
            repro_each(project, ["check"])
            curve[str(size)] = measured(project, size)
        made_pairs.write_tables(source, written, 1)
        curve["one table more"] = measured(project, made_pairs.ROWS, forget=False)
        return {
            "rows_of_a_table": made_pairs.ROWS,
            "curve": curve,
            "packed_bytes": size_of(project / "data" / "packed"),
        }


def measured(project: Path, pairs: int, *, forget: bool = True) -> dict:
    """What the stages take; `forget`: nothing is kept from before."""
    if forget:
        shutil.rmtree(project / ".work", ignore_errors=True)
    stages = repro_each(project, STAGES)
    seconds = sum(stage["seconds"] for stage in stages.values())
    return {
        "stages": stages,
        "seconds": round(seconds, 1),
        "microseconds_a_pair": round(1e6 * seconds / pairs, 1),
        "peak_mib": max(stage["peak_mib"] for stage in stages.values()),
        "counts": counts_of(project),
    }
