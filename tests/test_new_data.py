"""New data on a real Prefect server: they start the pipeline once they lie still, and their shards alone are work."""

import os
import time
from pathlib import Path

import pytest

from clip_core.recipe import apply_recipes
from tests.conftest import new_project, run_in
from tests.prefect_api import PATIENCE
from tests.small_raw import drawing, encoded
from tests.test_webdataset_source import sample, write_tar
from tests.toy_pipeline import new_toy, run_flow, runs, start_flow


def on_new_data(still_minutes: float) -> tuple[str, str]:
    """The arguments of python that run the flow."""
    return "-c", (
        "import asyncio; from flows.on_new_data import on_new_data; "
        f"state = asyncio.run(on_new_data({still_minutes}, return_state=True)); print('ended', state.name)"
    )


def test_nothing_runs_until_the_source_has_something_new_that_lies_still(tmp_path: Path, api: str) -> None:
    toy = new_toy(tmp_path)
    (toy / "dvc.yaml").write_text(
        "stages:\n  ingest:\n    cmd: python toy.py ingest\n    deps: [toy.py, .cache/emoji]\n    outs: [ingest.out]\n"
    )
    shard = toy / ".cache" / "emoji" / "shard"
    shard.parent.mkdir(parents=True)
    shard.write_text("1")
    assert "ended Waiting" in run_flow(toy, api, *on_new_data(1))[1]
    for path in (shard, shard.parent):
        os.utime(path, times=(then := time.time() - 120, then))
    assert "ended Completed" in run_flow(toy, api, *on_new_data(1))[1]
    assert runs(toy) == ["ingest"]
    with (toy / "toy.py").open("a") as file:
        file.write("# other code, which is the nightly's to run\n")
    assert "ended Unchanged" in run_flow(toy, api, *on_new_data(0))[1]
    assert runs(toy) == []


@pytest.mark.slow
def test_the_stages_over_data_work_on_the_new_shard_alone(tmp_path: Path, api: str) -> None:
    project = new_project(tmp_path / "project")
    for recipe in ("smoke", "webdataset"):
        apply_recipes([project / "recipes" / f"{recipe}.yaml"], project / "params.yaml")
    pipeline = (project / "dvc.yaml").read_text(encoding="utf-8")
    (project / "dvc.yaml").write_text(pipeline.partition("  curate:")[0], encoding="utf-8")  # the two over shards
    for number in (0, 1):
        write_shard(project, number)
    run_in(project, "dvc", "repro")
    write_shard(project, 2)
    output, _ = start_flow(project, api, *on_new_data(0)).communicate(timeout=PATIENCE)
    assert "ended Completed" in output, output
    for stage in ("ingest", "validate"):
        assert f"{stage}: 3 shards, 2 of them kept from before" in output


def write_shard(project: Path, number: int) -> None:
    """A tar of forty pairs, a fifth of them held out."""
    splits = ["train"] * 8 + ["valid", "test"]
    members = [
        one
        for i in range(40 * number, 40 * number + 40)
        for one in sample(f"{i:09d}", f"第{i}张图", encoded(drawing(i), "JPEG"), split=splits[i % 10])
    ]
    write_tar(project / "my_pairs" / f"{number:05d}.tar", members)
