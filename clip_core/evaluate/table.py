"""Metrics as a small table of plain text."""

from collections.abc import Mapping

ROWS = {
    "text_to_image_recall@1": "text -> image  R@1",
    "text_to_image_recall@5": "               R@5",
    "text_to_image_recall@10": "               R@10",
    "text_to_image_mean_recall": "               mean",
    "image_to_text_recall@1": "image -> text  R@1",
    "image_to_text_recall@5": "               R@5",
    "image_to_text_recall@10": "               R@10",
    "image_to_text_mean_recall": "               mean",
}
CLASSES = {"top1_accuracy": "all", "seen_top1_accuracy": "seen", "unseen_top1_accuracy": "unseen"}


def metrics_table(metrics: Mapping, title: str) -> str:
    """Every group's recalls in percent, with interval and chance, and the zero-shot accuracies below."""
    groups = [group for group in ("seen", "unseen", "all", "unseen_words") if group in metrics]
    lines = [f"{title}, % [interval] (chance)"]
    lines.append(" " * 20 + "".join(f"{_size(group, metrics[group]):<30}" for group in groups))
    for name, label in ROWS.items():
        lines.append(f"{label:<20}" + "".join(f"{percent(metrics[group][name]):<30}" for group in groups))
    for name, label in CLASSES.items():
        if name in metrics.get("zero_shot", {}):
            entry = metrics["zero_shot"][name]
            lines.append(f"zero-shot, {label:<9}{percent(entry)}, commonest class {100 * entry['majority']:.1f}")
    return "\n".join(line.rstrip() for line in lines)


def ablation_table(ablation: Mapping) -> str:
    """The arms of `reports/ablation.json` with their intervals over seeds, and the differences between arms."""
    columns = {"seen": "seen concepts", "unseen": "unseen concepts", "unseen_words": "unseen words"}
    columns = {g: label for g, label in columns.items() if any(g in arm for arm in ablation["arms"].values())}
    metric = "text_to_image_mean_recall"
    interval = f"{100 * ablation['confidence']:g} % interval over {len(ablation['seeds'])} seeds"
    lines = [f"text -> image mean recall, % [{interval}] (chance)"]
    lines.append(" " * 32 + "".join(f"{label:<26}" for label in columns.values()))
    for arm in ablation["arms"].values():
        lines.append(f"{arm['title']:<32}" + "".join(f"{percent(arm[g][metric]):<26}" for g in columns if g in arm))
    for row in ablation["differences"]:
        low, high, value = (100 * row[key] for key in ("low", "high", "value"))
        lines.append(
            f"{row['metric'].split('.')[0]}: {row['arm']} - {row['minus']} = {value:+.1f} [{low:+.1f}, {high:+.1f}]"
        )
    return "\n".join(line.rstrip() for line in lines)


def percent(entry: Mapping[str, float]) -> str:
    """A metric as `18.0 [15.9-20.2] (0.1)`."""
    value, low, high, chance = (100 * entry[key] for key in ("value", "low", "high", "chance"))
    return f"{value:.1f} [{low:.1f}-{high:.1f}] ({chance:.1f})"


def _size(group: str, metrics: Mapping) -> str:
    return f"{group}: {metrics['num_queries']} asked of {metrics['num_candidates']}"
