"""The table of benchmarks: a row for each model on each, with intervals and what it was made of, and the paper's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip_core.errors import UserError
from clip_core.evaluate.benchmarks.described import RELEASED, Benchmark
from clip_core.files import atomic_write

FILE, PAGE = "table.json", "table.md"
# A newer row, or comparison, with the same of these takes the place of an older one.
ROW = ("benchmark", "templates", "weights_id")
COMPARISON = (*ROW, "minus_weights_id", "metric")
GROUP = ("benchmark", "data", "templates")  # rows that stand together: others answer another question
OVERLAP = ("benchmark", "data", "weights_id")  # whose overlap with training data is kept
FIGURES = (*ROW, "data", "params", "metrics")  # what a comparison is of
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
    """Adds rows and comparisons to the table in `folder`, each in the place of its like, and writes its page.

    A comparison goes with the figures that it is of. What was found in training data stays where it was not looked for.
    """
    before = read_table(folder)
    looked_for = {_of(row, OVERLAP): row for row in before["rows"] if row["overlap"]}
    renewed = _renewed(before["rows"], [_with_overlap(row, looked_for) for row in rows], ROW)
    figures = [_of(row, FIGURES) for row in renewed]
    gone = [_of(row, ROW) for row in before["rows"] if _of(row, FIGURES) not in figures]
    kept = [
        row
        for row in before["comparisons"]
        if not any(_of(row, (*ROW[:-1], side)) in gone for side in ("weights_id", "minus_weights_id"))
    ]
    table = {"rows": renewed, "comparisons": _renewed(kept, comparisons, COMPARISON)}
    atomic_write(folder / FILE, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    atomic_write(folder / PAGE, page_of(table))
    return table


def read_table(folder: Path) -> dict:
    """The table in `folder`, empty where there is none."""
    try:
        table = json.loads((folder / FILE).read_text(encoding="utf-8"))
        # One of a table from before says not of which data it is, and may belong to none of the rows.
        return {"rows": list(table["rows"]), "comparisons": [row for row in table["comparisons"] if "data" in row]}
    except FileNotFoundError:
        return {"rows": [], "comparisons": []}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / FILE}: no table of benchmarks: move it away, or name another folder") from None


def page_of(table: Mapping) -> str:
    """The table in Markdown, a section for the rows of the same benchmark, data and templates."""
    sections = [
        "# Benchmarks\n\nIn percent, [interval]; chance: of a model that knows nothing; †: contaminated, see below.\n"
    ]
    for group in dict.fromkeys(_of(row, GROUP) for row in table["rows"]):
        rows = [row for row in table["rows"] if _of(row, GROUP) == group]
        metrics = [metric for metric in LABELS if any(metric in row["metrics"] for row in rows)]
        lines = [
            f"## {rows[-1]['title']} (`{rows[-1]['benchmark']}`), data {rows[-1]['data']}\n",
            _line("", *(LABELS[metric] for metric in metrics), IN_TRAINING),
        ]
        lines.append("|" + " --- |" * (2 + len(metrics)))
        for row in rows:
            mark = " †" if row["contaminated"] else ""
            cells = (_cell(row["metrics"].get(metric)) for metric in metrics)
            lines.append(_line(f"{row['model']}{_templates(row)}{mark}", *cells, _overlap(row["overlap"])))
        chances = [rows[-1]["metrics"].get(metric, {}).get("chance") for metric in metrics]
        lines.append(_line("chance", *("" if chance is None else f"{100 * chance:.1f}" for chance in chances), ""))
        for (released, kind), figures in _of_paper(rows).items():
            cells = (f"{figures[metric]:.1f}" if metric in figures else "" for metric in metrics)
            lines.append(_line(f"paper: {released}, {kind}", *cells, ""))
        lines += ["", *(f"- {_about(row)}" for row in rows)]
        lines += [f"- {_difference(row)}" for row in table["comparisons"] if _of(row, GROUP) == group]
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
    known = [_of(row, key) for row in new]
    return [*(row for row in old if _of(row, key) not in known), *new]


def _with_overlap(row: dict, looked_for: Mapping[tuple, dict]) -> dict:
    known = looked_for.get(_of(row, OVERLAP))
    if row["overlap"] or not known:
        return row
    marks = list(dict.fromkeys([*row["contaminated"], *known["contaminated"]]))
    return row | {"overlap": known["overlap"], "contaminated": marks}


def _of(row: Mapping, names: tuple[str, ...]) -> tuple:
    return tuple(row[name] for name in names)


def _templates(row: Mapping) -> str:
    """What the row's label says of its templates, where they are not ours."""
    return f", templates {row['templates']}" if row["templates"].startswith("cn_clip") else ""


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
    metric = LABELS[row["metric"]] if "mean_recall" not in row["metric"] else row["metric"]
    return (
        f"{metric}{_templates(row)}: {row['model']} − {row['minus']} = {value:+.1f} [{low:+.1f}, {high:+.1f}], "
        f"p = {row['p_value']:.4f} (paired bootstrap)"
    )
