"""A million pairs from tables to packed shards: memory flat, the cost of a pair not growing, one more shard for little.

`ROWS="20000 40000"` in the environment takes other sizes.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from clip_core.recipe import apply_recipes
from tests import made_pairs
from tests.conftest import ROOT, new_project
from tests.watched import counts_of, repro_each, size_of, watch

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
        first_batch = watch(
            ROOT, sys.executable, "-m", "tests.proofs.million", str(project / "data" / "packed" / "train")
        )
        return {
            "rows_of_a_table": made_pairs.ROWS,
            "first_batch": json.loads(first_batch.said.splitlines()[-1]) | {"peak_mib": first_batch.peak_mib},
            "curve": curve,
            "packed_bytes": size_of(project / "data" / "packed"),
        }


def first_batch_of(folder: Path) -> dict[str, float]:
    """Seconds from an open process to the first batch, and again with all imported."""
    import cn_clip

    from clip_core.config.training import NoAugmentation
    from clip_core.data.batches import TrainingBatches
    from clip_core.data.pictures import AsNeeded
    from clip_core.data.store import open_store
    from clip_core.image import Preprocessing
    from clip_core.text import parse_tokenizer, tokenizer_of_vocabulary
    from tests.tiny import tiny_training

    params = tiny_training().model_copy(update={"global_batch": 64, "augmentation": NoAugmentation(name="none")})
    tokenizer = parse_tokenizer(tokenizer_of_vocabulary(Path(cn_clip.__file__).parent / "clip/vocab.txt"), 52)
    found: dict[str, float] = {}
    for name in ("seconds_with_imports", "seconds"):
        start = time.monotonic()
        store = open_store(folder)
        with TrainingBatches(store, AsNeeded(store, 224, Preprocessing(), "exact"), tokenizer, params, 1) as batches:
            batches.batch(1)
            found |= {"pairs": batches.num_rows, name: round(time.monotonic() - start, 2)}
    return found


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


if __name__ == "__main__":
    print(json.dumps(first_batch_of(Path(sys.argv[1]))))
