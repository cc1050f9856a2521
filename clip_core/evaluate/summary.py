"""What `make run` says when it is done: the headline metrics, where the report lies, and how to go on."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from clip_core.evaluate.headline import has_concepts
from clip_core.evaluate.table import percent

COLUMNS = {
    "text_to_image_recall@1": "R@1",
    "text_to_image_recall@10": "R@10",
    "text_to_image_mean_recall": "mean recall",
}
GROUPS = {
    "all": "all together",
    "seen": "concepts trained on",
    "unseen": "concepts never seen",
    "unseen_words": "words never seen",
}
WITHOUT_CONCEPTS = {"all": "all test pairs"}


def headline_table(metrics: Mapping) -> str:
    """The recalls of Chinese text -> picture in `metrics`, which is `reports/metrics.json`."""
    test = metrics["test"]
    labels = GROUPS if has_concepts(test) else WITHOUT_CONCEPTS
    cells = {group: [percent(test[group][name]) for name in COLUMNS] for group in labels if group in test}
    width = 2 + max(len(cell) for row in cells.values() for cell in row)
    lines = [
        f"Chinese text -> picture on the test pictures, in % [{100 * metrics['confidence']:g} % interval] (chance)",
        f"  {'':<34}" + "".join(f"{label:<{width}}" for label in COLUMNS.values()),
    ]
    for group, row in cells.items():
        sizes = f"{test[group]['num_queries']} of {test[group]['num_candidates']}"
        lines.append(f"  {labels[group]:<21}{sizes:<13}" + "".join(f"{cell:<{width}}" for cell in row))
    if "zero_shot" in test:
        zero_shot = test["zero_shot"]
        classes = f"zero-shot, {zero_shot['num_candidates']} classes"
        lines.append(f"  {classes:<34}{percent(zero_shot['top1_accuracy'])} top-1")
    return "\n".join(line.rstrip() for line in lines)


def summary(metrics: Mapping, report: Path) -> str:
    """The end of a run in a few lines."""
    return f"""{headline_table(metrics)}

The report:   {report}
Go on with:   make serve                  type Chinese, see pictures
              python -m flows.pipeline    the same run as a Prefect flow (first: source .venv/bin/activate)"""


def main(report: Path = Path("reports/report.html"), metrics: Path = Path("reports/metrics.json")) -> None:
    """Prints the summary of the last run."""
    try:
        found = json.loads(metrics.read_text(encoding="utf-8"))
    except FileNotFoundError:
        print(f"error: {metrics}: no such file. `make run` writes it.", file=sys.stderr)
        sys.exit(2)
    print("\n" + summary(found, report))


if __name__ == "__main__":
    main()
