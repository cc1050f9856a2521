"""The report's figures: what stands in its tiles, tables and charts."""

from collections.abc import Mapping, Sequence
from operator import itemgetter

from clip_core.evaluate.headline import has_concepts
from clip_core.evaluate.report.bilingual import Said, say
from clip_core.evaluate.report.charts import Line, chart

GROUPS = {
    "all": ("All together", "Every query searches every picture."),
    "seen": ("Concepts seen in training", "The names were learnt with other pictures; these pictures are new."),
    "unseen": ("Concepts never seen", "Neither the name nor any picture of it was in training."),
    "unseen_words": ("Words never seen", "No caption of training says it; each picture that it describes is right."),
}
WITHOUT_CONCEPTS = {"all": ("All test pairs", "Every query searches every picture. These data name no concepts.")}
AMONG = {
    "all": "all test pairs",
    "seen": "seen concepts",
    "unseen": "unseen concepts",
    "unseen_words": "unseen words",
    "zero_shot": "concept groups",
}
MEASURES = {"recall@1": "R@1", "recall@5": "R@5", "recall@10": "R@10", "mean_recall": "mean"}
NAMES = {
    "text_to_image_recall@1": "first picture right",
    "text_to_image_recall@10": "right one among ten",
    "text_to_image_mean_recall": "mean recall",
    "image_to_text_mean_recall": "mean recall, picture &rarr; text",
    "top1_accuracy": "zero-shot accuracy",
}
HEADLINE = (  # the overall figures first
    ("all", "text_to_image_recall@1"),
    ("all", "text_to_image_recall@10"),
    ("all", "text_to_image_mean_recall"),
    ("seen", "text_to_image_mean_recall"),
    ("unseen", "text_to_image_mean_recall"),
    ("unseen_words", "text_to_image_mean_recall"),
    ("zero_shot", "top1_accuracy"),
)
COMPARED = (*HEADLINE[:3], ("all", "image_to_text_mean_recall"), *HEADLINE[3:])
BY = ("length", "script", "category")
BENCHMARKED = {
    "text_to_image_recall@1": "R@1, text &rarr; picture",
    "image_to_text_recall@1": "R@1, picture &rarr; text",
    "text_to_image_mean_recall": "mean recall, text &rarr; picture",
    "mean_recall": "mean recall, both ways",
    "accuracy": "accuracy",
    "mean_per_class": "accuracy, mean of classes",
    "map_11_points": "11-point mAP",
    "roc_auc": "ROC-AUC",
}
MAX_PARTS = 24  # of the queries, by what divides them; the largest stand
SCRIPTS = {"neither": "the same in both", "both": "characters of both"}
MODELS = {"init": "start", "stage1": "stage 1", "stage2": "stage 2"}


def figures(metrics: Mapping, wanted: Sequence[tuple[str, str]] = HEADLINE) -> list[dict]:
    """Those of the wanted figures that there are, each with its label; `seen` says nothing where it is all."""
    known = has_concepts(metrics)
    return [
        {"label": say(NAMES[name]), "among": say(AMONG[group]), "key": (group, name), "entry": metrics[group][name]}
        for group, name in wanted
        if name in metrics.get(group, {}) and (known or group == "all")
    ]


def groups(metrics: Mapping) -> list[dict]:
    """Each group of queries with the final model's figures and the earlier one's."""
    earlier = next(iter(metrics["others"].values()), {})
    return [
        {
            "title": say(title),
            "meaning": say(meaning),
            "sizes": _sizes(metrics[group]),
            "mine": metrics[group],
            "earlier": earlier.get(group, {}),
        }
        for group, (title, meaning) in (GROUPS if has_concepts(metrics) else WITHOUT_CONCEPTS).items()
        if group in metrics
    ]


def compared(metrics: Mapping) -> list[dict]:
    """The final model against each other one: both figures and their paired difference."""
    return [
        {
            "title": say(MODELS.get(name, name)),
            "rows": [
                row | {"before": other[group][metric]["value"], "difference": other["differences"][group][metric]}
                for row in figures(metrics, COMPARED)
                for group, metric in [row["key"]]
            ],
        }
        for name, other in metrics["others"].items()
    ]


def sliced(slices: Sequence[dict]) -> dict[str, list[dict]]:
    """The parts of the queries by what divides them; what does not divide them is left out."""
    parts = {by: [part for part in slices if part["by"] == by] for by in BY}
    least = {
        by: sorted((part["num_queries"] for part in found), reverse=True)[:MAX_PARTS] for by, found in parts.items()
    }
    return {
        by: [
            part | {"name": say(SCRIPTS.get(part["name"], part["name"]) if by == "script" else part["name"])}
            for part in found
            if part["num_queries"] >= least[by][-1]
        ]
        for by, found in parts.items()
        if len(found) > 1
    }


def benchmarks(table: Mapping) -> list[dict]:
    """Each benchmark of reports/benchmarks/table.json with its models' rows, and their differences.

    Rows of other data or templates stand by themselves, and the title says of which.
    """
    found, of = [], itemgetter("benchmark", "data", "templates")
    groups = list(dict.fromkeys(map(of, table["rows"])))
    for group in groups:
        (name, data, templates), names = group, [other[0] for other in groups]
        rows = [row for row in table["rows"] if of(row) == group]
        titles = [rows[-1]["title"], *[data] * (names.count(name) > 1), *[templates] * templates.startswith("cn_clip")]
        metrics = {key: say(label) for key, label in BENCHMARKED.items() if any(key in row["metrics"] for row in rows)}
        known = [row for row in table["comparisons"] if "data" in row and row["metric"] in metrics]
        apart = [row for row in known if of(row) == group]
        found.append({"title": ", ".join(titles), "rows": rows, "metrics": metrics, "comparisons": apart})
    return found


def since(metrics: Mapping, before: Mapping) -> list[dict]:
    """The figures of this run that an earlier reports/metrics.json has, too."""
    rows = [row | {"then": before.get(row["key"][0], {}).get(row["key"][1])} for row in figures(metrics)]
    return [row for row in rows if row["then"] is not None]


def recall_charts(details: Mapping) -> list[dict]:
    """Recall over the number of answers looked at, each way, a line a model."""
    curves = details["recall_curves"]
    titles = {
        "text_to_image": say("Recall at k, text &rarr; picture"),
        "image_to_text": say("Recall at k, picture &rarr; text"),
    }
    marks = (1, 2, 5, 10, 20, 50, 100)
    charts = []
    for way, title in titles.items():
        lines = [
            Line(say(MODELS.get(name, name)), name if name in MODELS else "init", [(k, 100 * r) for k, r in found[way]])
            for name, found in curves.items()
        ]
        last = max(k for line in lines for k, _ in line.points)
        charts.append(chart(title, lines, "%", [k for k in marks if k <= max(last, 2)], is_log=True))
    return charts


def training_charts(curves_of: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> list[dict]:
    """The losses of all training and the validation recall on its way; `curves_of[stage]` has loss and recall."""
    init, first, second = (curves_of[stage] for stage in ("init", "stage1", "stage2"))
    offset = first["loss"][-1][0] if first["loss"] else 0  # a stage 1 of no steps
    later = {name: [(offset + x, y) for x, y in points] for name, points in second.items()}
    charts = []
    if init["loss"]:
        charts += [chart(say("Loss, warm-up of the image tower"), [Line("init", "init", init["loss"])])]
    if first["loss"] or later["loss"]:
        one, two = (say(MODELS[stage]) for stage in ("stage1", "stage2"))
        losses = [Line(one, "stage1", first["loss"]), Line(two, "stage2", later["loss"])]
        recalls = [
            Line(one, "stage1", [(x, 100 * y) for x, y in first["recall"]], dots=True),
            Line(two, "stage2", [(x, 100 * y) for x, y in first["recall"][-1:] + later["recall"]], dots=True),
        ]
        charts += [
            chart(say("Loss, Chinese steps"), losses),
            chart(say("Recall on the validation pictures"), recalls, "%"),
        ]
    return charts


def calibration_chart(bins: Sequence[Mapping]) -> dict:
    """The reliability diagram: how often pairs of a probability match; on the diagonal they do as often as it says."""
    points = [(100 * found["mean_probability"], 100 * found["share_matched"]) for found in bins if found["count"]]
    lines = [
        Line(say("perfect"), "ideal", [(0, 0), (100, 100)]),
        Line(say("stage 2"), "stage2", points, dots=True),
    ]
    drawn = chart(say("Matched, % of pairs, over the probability given, %"), lines, "%", (0, 20, 40, 60, 80, 100))
    return drawn | {"lines": [line | {"last": ""} for line in drawn["lines"]]}  # where it ends says nothing


def _sizes(group: Mapping) -> Said:
    """The queries and candidates, and the candidates that ask nothing, where there are any."""
    said = say("{} texts, {} pictures", f"{group['num_queries']:,}", f"{group['num_candidates']:,}")
    if of_pictures := group.get("num_pictures_without_text"):
        said += say("; {} of them without a text", f"{of_pictures:,}")
    if of_texts := group.get("num_texts_without_picture"):
        said += say("; {} more texts without a picture, not asked", f"{of_texts:,}")
    return said
