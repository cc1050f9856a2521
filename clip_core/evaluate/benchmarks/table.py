"""The table of benchmarks: a row for each model on each, with intervals and what it was made of, and the paper's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_core.errors import UserError
from clip_core.evaluate.benchmarks.described import RELEASED, Benchmark
from clip_core.files import atomic_write

FILE, PAGE = "table.json", "table.md"
# A newer row, or comparison, with the same of these takes the place of an older one.
ROW, COMPARISON = ("benchmark", "weights_id", "templates"), ("benchmark", "metric", "weights_id", "minus_weights_id")
IN_TRAINING = "in training data, alike (the same)"
LABELS = {
    "text_to_image_recall@1": "text → image R@1",
    "text_to_image_recall@5": "R@5",
    "text_to_image_recall@10": "R@10",
    "text_to_image_mean_recall": "mean of 3",
    "image_to_text_recall@1": "image → text R@1",
    "image_to_text_recall@5": "R@5",
    "image_to_text_recall@10": "R@10",
    "image_to_text_mean_recall": "mean of 3",
    "mean_recall": "mean of 6",
    "text_to_image_map@r": "text → image mAP@R",
    "image_to_text_map@r": "image → text mAP@R",
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "map_11_points": "11-point mAP",
    "roc_auc": "ROC-AUC",
}


def add_rows(folder: Path, rows: Sequence[dict], comparisons: Sequence[dict]) -> dict:
    """Adds rows and comparisons to the table in `folder`, each in the place of its like, and writes its page."""
    before = read_table(folder)
    table = {
        "rows": _renewed(before["rows"], rows, ROW),
        "comparisons": _renewed(before["comparisons"], comparisons, COMPARISON),
    }
    atomic_write(folder / FILE, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    atomic_write(folder / PAGE, page_of(table))
    return table


def read_table(folder: Path) -> dict:
    """The table in `folder`, empty where there is none."""
    try:
        table = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {name: list(table[name]) for name in ("rows", "comparisons")}
    except FileNotFoundError:
        return {"rows": [], "comparisons": []}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / FILE}: no table of benchmarks: move it away, or name another folder") from None


def page_of(table: Mapping) -> str:
    """The table in Markdown, a section a benchmark."""
    sections = [
        "# Benchmarks\n\nIn percent, [interval]; chance: of a model that knows nothing; †: contaminated, see below.\n"
    ]
    for name in dict.fromkeys(row["benchmark"] for row in table["rows"]):
        rows = [row for row in table["rows"] if row["benchmark"] == name]
        metrics = [metric for metric in LABELS if any(metric in row["metrics"] for row in rows)]
        lines = [
            f"## {rows[-1]['title']} (`{name}`)\n",
            _line("", *(LABELS[metric] for metric in metrics), IN_TRAINING),
        ]
        lines.append("|" + " --- |" * (2 + len(metrics)))
        for row in rows:
            mark = " †" if row["contaminated"] else ""
            cells = (_cell(row["metrics"].get(metric)) for metric in metrics)
            lines.append(_line(f"{row['model']}{mark}", *cells, _overlap(row["overlap"])))
        chances = [rows[-1]["metrics"].get(metric, {}).get("chance") for metric in metrics]
        lines.append(_line("chance", *("" if chance is None else f"{100 * chance:.1f}" for chance in chances), ""))
        for (released, kind), figures in _of_paper(rows).items():
            cells = (f"{figures[metric]:.1f}" if metric in figures else "" for metric in metrics)
            lines.append(_line(f"paper: {released}, {kind}", *cells, ""))
        lines += ["", *(f"- {_about(row)}" for row in rows)]
        lines += [f"- {_difference(row)}" for row in table["comparisons"] if row["benchmark"] == name]
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def paper_of(benchmark: Benchmark, released: str | None) -> dict[str, dict[str, float]]:
    """The paper's figures for the released model: zero_shot and finetuned, by metric."""
    if released is None or benchmark.paper is None:
        return {}
    place = RELEASED.index(released)
    kinds = benchmark.paper.model_dump()
    return {kind: {metric: values[place] for metric, values in of.items()} for kind, of in kinds.items() if of}


def _of_paper(rows: Sequence[Mapping]) -> dict[tuple[str, str], dict[str, float]]:
    return {
        (row["released"], kind.replace("_", "-")): figures for row in rows for kind, figures in row["paper"].items()
    }


def _renewed(old: Sequence[dict], new: Sequence[dict], key: tuple[str, ...]) -> list[dict]:
    known = [[row[name] for name in key] for row in new]
    return [*(row for row in old if [row[name] for name in key] not in known), *new]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return ""
    value, low, high = (100 * entry[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}–{high:.1f}]"


def _overlap(found: Mapping[str, int] | None) -> str:
    """What the training data have of a benchmark, near ones with the same; the same in brackets."""
    if found is None:
        return "not looked for"
    parts = [
        f"{found[f'{what}_near']:,} ({found[f'{what}_exact']:,}) of {found[f'num_{what}']:,} {what}"
        for what in ("pictures", "texts")
        if found[f"num_{what}"]
    ]
    return ", ".join(parts)


def _about(row: Mapping) -> str:
    made = ", ".join(f"{key} {value}" for key, value in row["made"].items())
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    said = [
        f"**{row['model']}**: weights {row['weights_id']} ({made})",
        f"data {row['data']} ({', '.join(f'{number:,} {what}' for what, number in row['sizes'].items())})",
        f"templates {row['templates']}" if row["templates"] else "",
        f"params {row['params']}, {row['precision']}, {versions}",
        f"commit {row['commit']}, {row['date']}",
        *row["contaminated"],
        *row["notes"],
    ]
    return "; ".join(filter(None, said))


def _difference(row: Mapping) -> str:
    low, high, value = (100 * row[key] for key in ("low", "high", "value"))
    return (
        f"{LABELS[row['metric']] if 'mean_recall' not in row['metric'] else row['metric']}: {row['model']} − "
        f"{row['minus']} = {value:+.1f} [{low:+.1f}, {high:+.1f}], p = {row['p_value']:.4f} (paired bootstrap)"
    )
