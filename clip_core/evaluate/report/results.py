"""The report's figures: headline tiles, tables with intervals and chance, curves."""

from collections.abc import Mapping

from clip_core.evaluate.headline import has_concepts
from clip_core.evaluate.report.charts import Line, curves, interval_bar, percent

GROUPS = {
    "seen": ("Concepts seen in training", "The names were learnt with other pictures; these pictures are new."),
    "unseen": ("Concepts never seen", "Neither the name nor any picture of it was in training."),
    "all": ("All together", "Every query searches every picture."),
}
WITHOUT_CONCEPTS = {"all": ("All test pairs", "Every query searches every picture. These data name no concepts.")}
WAYS = {"text_to_image": "text &rarr; picture", "image_to_text": "picture &rarr; text"}
MEASURES = {"recall@1": "R@1", "recall@5": "R@5", "recall@10": "R@10", "mean_recall": "mean"}
TILES = (
    ("seen", "text_to_image_recall@1", "first picture right", "seen concepts"),
    ("seen", "text_to_image_recall@10", "right one among ten", "seen concepts"),
    ("seen", "text_to_image_mean_recall", "mean recall", "seen concepts"),
    ("unseen", "text_to_image_mean_recall", "mean recall", "unseen concepts"),
    ("zero_shot", "top1_accuracy", "zero-shot accuracy", "concept groups"),
)


def tiles(metrics: Mapping) -> str:
    """The figures to remember, each with its interval and chance level."""
    known = has_concepts(metrics)
    return "".join(
        f'<div class="tile"><p class="label">{label}<span>{among if known else "all test pairs"}</span></p>'
        f'<p class="figure">{100 * (entry := metrics[group][name])["value"]:.1f}<small>%</small></p>'
        f"{interval_bar({'stage2': entry}, scale=1)}"
        f'<p class="under">{100 * entry["low"]:.1f}&ndash;{100 * entry["high"]:.1f}'
        f"<span>chance {_chance(entry)}</span></p></div>"
        for group, name, label, among in TILES
        if name in metrics.get(group, {})
    )


def retrieval_tables(metrics: Mapping) -> str:
    """A card for each group: both ways, the final model beside the earlier one."""
    earlier = next(iter(metrics["others"].values()), {})
    cards = []
    for group, (title, meaning) in (GROUPS if has_concepts(metrics) else WITHOUT_CONCEPTS).items():
        if group in metrics:
            mine = metrics[group]
            tables = "".join(_table(way, mine, earlier.get(group, {})) for way in WAYS)
            sizes = f"{mine['num_queries']:,} texts, {mine['num_candidates']:,} pictures{_alone(mine)}"
            cards.append(
                f'<div class="card"><h3>{title} <small>{sizes}</small></h3><p>{meaning}</p>'
                f'<div class="pair">{tables}</div></div>'
            )
    return "".join(cards)


def zero_shot_table(metrics: Mapping) -> str:
    """Zero-shot classification over the concept groups, with both levels of knowing nothing; empty without groups."""
    mine = metrics.get("zero_shot")
    if mine is None:
        return ""
    labels = {"top1_accuracy": "all pictures", "seen_top1_accuracy": "seen", "unseen_top1_accuracy": "unseen"}
    rows = "".join(
        f"<tr><th>{label}</th><td>{percent(mine[name])}</td>"
        f'<td class="wide">{interval_bar({"stage2": mine[name]}, scale=1)}</td>'
        f"<td>{_chance(mine[name])}</td><td>{100 * mine[name]['majority']:.1f}</td></tr>"
        for name, label in labels.items()
        if name in mine
    )
    return (
        f'<div class="card"><h3>Zero-shot classification <small>{mine["num_queries"]:,} pictures, '
        f"{mine['num_candidates']} classes</small></h3>"
        "<p>The class whose Chinese name, said in several ways, is nearest to the picture.</p>"
        '<div class="scroll"><table class="figures"><thead><tr><th></th><th>top-1, %</th><th class="wide"></th>'
        f"<th>uniform</th><th>commonest</th></tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def training_curves(curves_of: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> str:
    """The losses of all training and the validation recall on its way; `curves_of[stage]` has loss and recall."""
    init, first, second = (curves_of[stage] for stage in ("init", "stage1", "stage2"))
    offset = first["loss"][-1][0] if first["loss"] else 0  # a stage 1 of no steps
    later = {name: [(offset + x, y) for x, y in points] for name, points in second.items()}
    charts = []
    if init["loss"]:
        charts += [curves([Line("init", "init", init["loss"])], "Loss, warm-up of the image tower")]
    if first["loss"] or later["loss"]:
        losses = [Line("stage 1", "stage1", first["loss"]), Line("stage 2", "stage2", later["loss"])]
        recalls = [
            Line("stage 1", "stage1", [(x, 100 * y) for x, y in first["recall"]], dots=True),
            Line("stage 2", "stage2", [(x, 100 * y) for x, y in first["recall"][-1:] + later["recall"]], dots=True),
        ]
        charts += [
            curves(losses, "Loss, Chinese steps"),
            curves(recalls, "Recall on the validation pictures", unit="%", from_zero=True),
        ]
    return "".join(charts)


def _table(way: str, mine: Mapping, earlier: Mapping) -> str:
    rows = ""
    for measure, short in MEASURES.items():
        entry, before = mine[f"{way}_{measure}"], earlier.get(f"{way}_{measure}")
        both = ({"stage1": before} if before else {}) | {"stage2": entry}
        first = f"{100 * before['value']:.1f}" if before else ""
        rows += (
            f'<tr><th>{short}</th><td>{percent(entry)}</td><td class="wide">{interval_bar(both, scale=1)}</td>'
            f'<td class="earlier">{first}</td><td>{_chance(entry)}</td></tr>'
        )
    head = f'<tr><th>{WAYS[way]}</th><th>stage 2, %</th><th class="wide"></th><th>stage 1</th><th>chance</th></tr>'
    return f'<div class="scroll"><table class="figures"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _alone(group: Mapping) -> str:
    """The candidates that ask nothing, where there are any."""
    of_pictures = group.get("num_pictures_without_text", 0)
    of_texts = group.get("num_texts_without_picture", 0)
    said = [f"{of_pictures:,} of them without a text"] if of_pictures else []
    said += [f"{of_texts:,} more texts without a picture, not asked"] if of_texts else []
    return "".join(f"; {part}" for part in said)


def _chance(entry: Mapping[str, float]) -> str:
    return f"{100 * entry['chance']:.{1 if entry['chance'] >= 0.01 else 2}f}"
