"""Nights on data that changes: `nightly` and `housekeeping` on the platform, what was promoted and why, and the disk.

`NIGHTS=4` in the environment takes fewer than 24.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
from PIL import ImageChops

from clip_core.kept import KEPT
from clip_core.project import SERVING
from clip_core.recipe import apply_recipes
from clip_core.serve import releases
from tests.conftest import new_project, run_in
from tests.prefect_api import ask, log, stage_states, until
from tests.test_own_data import COLOURS, SHAPES, draw
from tests.toy_platform import deployments, platform

NIGHTS = 24
# What comes in a night. The first brings a part of the colours; wrong captions stay for a night without news.
NEWS = ("new pairs", "new pairs and bad ones", "wrong captions", "nothing")
DAYS = 3  # that housekeeping leaves what was of no use
RECIPE = """
curate: {rules: {near_duplicate: false, leakage: false}} # drawings resemble each other
stage2: {schedule: {num_steps: 120}}
releases: {keep: 3}
promotion: {approval: false}
"""


def prove() -> dict:
    """A line for each night: what came, what became of it, and what the project then takes on the disk."""
    with tempfile.TemporaryDirectory() as scratch:
        project = new_project(Path(scratch) / "project")
        (project / "recipes" / "nights.yaml").write_text(RECIPE, encoding="utf-8")
        for recipe in ("smoke", "table", "nights"):
            apply_recipes([project / "recipes" / f"{recipe}.yaml"], project / "params.yaml")
        for key in ("user.name", "user.email"):  # else no version can be registered
            run_in(project, "git", "config", key, "night")
        deployments(project, "nightly", "housekeeping")
        with platform(project) as url:
            lines = [night(project, url, number) for number in range(int(os.environ.get("NIGHTS", NIGHTS)))]
    assert any(line["serves"] == "the new one" for line in lines[1:]), "nothing was ever promoted"
    return {"nights": lines}


def night(project: Path, url: str, number: int) -> dict:
    """One night, and the day after it."""
    news = NEWS[number % len(NEWS)]
    if news != "nothing":
        bring(project / "my_pairs", number)
    serving, before = project / SERVING, releases.current(project / SERVING)
    newest = releases.added(serving)[:1]
    run = ended(url, "nightly")
    cleaned = ended(url, "housekeeping", days=DAYS, yes=True)
    for one in (run, cleaned):
        assert one["state_name"] == "Completed", (number, news, one["state"]["message"], log(url, one)[-5000:])
    ran = [stage for stage, state in stage_states(url, run).items() if state == "Ran"]
    now, is_new = releases.current(serving), releases.added(serving)[:1] != newest
    line = {
        "came": news,
        "state": run["state_name"],
        "seconds": round(run["total_run_time"]),
        "stages_ran": len(ran),
        "recall": round(recall(project), 3),
        "serves": "the new one" if now != before else "the old one",
        "why": decided(serving) if is_new and before else "the first" if is_new else "no new release",
        "disk_mib": round(on_disk(project) / 2**20, 1),
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)
    if news == "wrong captions":
        assert now == before and is_new, line
    if news == "nothing":
        assert now == before and not ran and not is_new, line
    for folder in (project / KEPT).glob("*/*"):  # a day goes by
        day_before = folder.stat().st_mtime - 86400
        os.utime(folder, (day_before, day_before))
    return line


def bring(folder: Path, number: int) -> None:
    """Writes the source as it is in that night: the same test always, and ever more for the training."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = []
    for place, (chinese, colour) in enumerate(COLOURS.items()):
        for shape in SHAPES:
            variants = [(size, 0) for size in range(12, 23)] + [(17, later) for later in range(1, number + 1)]
            for size, shift in variants:
                split = "test" if size < 14 else "valid" if size < 16 else "train"
                if split == "train" and place >= 3 and number == 0:
                    continue  # three of six colours come later
                name = f"{colour}-{SHAPES.index(shape)}-{size}-{shift}.png"
                ImageChops.offset(draw(colour, shape, size), shift % 8 - 4, shift // 8 - 2).save(folder / name)
                rows.append((name, f"一个{chinese}的{shape}", split))
    news = NEWS[number % len(NEWS)]
    if news == "new pairs and bad ones":
        (folder / "broken.png").write_bytes((folder / rows[0][0]).read_bytes()[:80])
        bad = {"broken.png": "一张坏的图片", "missing.png": "没有这张图片", rows[0][0]: " "}
        rows += [(name, caption, "train") for name, caption in bad.items()]
    table = pd.DataFrame(rows, columns=["image", "caption", "split"])
    if news == "wrong captions":
        train = table["split"] == "train"
        captions = table.loc[train, "caption"].tolist()
        table.loc[train, "caption"] = captions[len(captions) // 2 :] + captions[: len(captions) // 2]
    table.to_csv(folder / "pairs.csv", index=False)


def ended(url: str, deployment: str, **parameters: object) -> dict:
    """A run of the deployment, once it has ended."""
    (its,) = [one for one in ask(url, "deployments/filter") if one["name"] == deployment]
    run = ask(url, f"deployments/{its['id']}/create_flow_run", parameters=parameters)["id"]
    asked = {"id": {"any_": [run]}, "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}
    (one,) = until(lambda: ask(url, "flow_runs/filter", flow_runs=asked), every=2, patience=3600)
    return one


def recall(project: Path) -> float:
    """The mean recall of the test, of the model that the night made."""
    metrics = json.loads((project / "reports" / "test" / "metrics.json").read_text(encoding="utf-8"))
    return metrics["all"]["text_to_image_mean_recall"]["value"]


def decided(serving: Path) -> str:
    """Why the promotion decided as it did: its checks that failed, or the main one."""
    checks = json.loads((serving / "decisions" / f"{releases.added(serving)[0]}.json").read_text())["checks"]
    failed = [check["told"] for check in checks if not check["passed"]]
    return "; ".join(failed or [check["told"] for check in checks if check["name"].startswith("all.")])


def on_disk(project: Path) -> int:
    """The bytes of all its files, each once however many links it has."""
    said = subprocess.run(["du", "--summarize", "--block-size=1", project], stdout=subprocess.PIPE, text=True).stdout
    return int(said.split()[0])  # unchecked: of Prefect's files some come and go
