"""The report's table of the committed ablation."""

from collections.abc import Mapping
from html import escape

from clip_core.evaluate.report.charts import interval_bar, percent

METRICS = {
    "seen.text_to_image_mean_recall": "seen, text &rarr; picture, mean recall",
    "seen.image_to_text_mean_recall": "seen, picture &rarr; text, mean recall",
    "unseen.text_to_image_mean_recall": "unseen, text &rarr; picture, mean recall",
    "zero_shot.top1_accuracy": "zero-shot accuracy",
}


def ablation_tables(ablation: Mapping) -> str:
    """The arms with their intervals, one card a metric, what may be claimed, and the differences between arms."""
    arms = ablation["arms"]
    cards = []
    for name, label in METRICS.items():
        group, metric = name.split(".")
        entries = {arm: found[group][metric] for arm, found in arms.items() if metric in found.get(group, {})}
        if entries:
            scale = 1.1 * max(entry["high"] for entry in entries.values())
            rows = "".join(
                f"<tr><th>{escape(arms[arm]['title'])} <small>{_steps(arms[arm])}</small></th>"
                f'<td>{percent(entry)}</td><td class="wide">{interval_bar({arms[arm]["kind"]: entry}, scale)}</td></tr>'
                for arm, entry in entries.items()
            )
            cards.append(
                f'<div class="card"><h3>{label}</h3><div class="scroll">'
                f'<table class="figures arms">{rows}</table></div></div>'
            )
    return f'{"".join(cards)}<div class="card">{_differences(ablation)}</div>'


def _steps(arm: Mapping) -> str:
    english = f" + {arm['english_steps']} English" if arm["english_steps"] else ""
    return f"{arm['chinese_steps']} Chinese{english} steps"


def _differences(ablation: Mapping) -> str:
    arms = ablation["arms"]
    rows = "".join(
        f"<tr><th>{escape(arms[row['arm']]['title'])} minus {escape(arms[row['minus']]['title'])}</th>"
        f"<td><b>{100 * row['value']:+.1f}</b> <span class='range'>{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        f"</span></td><td>{'differs' if row['low'] * row['high'] > 0 else 'not told apart'}</td></tr>"
        for row in ablation["differences"]
    )
    return (
        "<h3>Differences on seen concepts, text &rarr; picture, mean recall, in points</h3>"
        f'<div class="scroll"><table class="figures">{rows}</table></div>'
    )
