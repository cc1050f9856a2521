"""The report's account of the committed ablation."""

from collections.abc import Mapping
from html import escape

from clip_core.evaluate.report.charts import interval_bar, percent

METRICS = {
    "seen.text_to_image_mean_recall": "Seen concepts, text &rarr; picture, mean recall",
    "seen.image_to_text_mean_recall": "Seen concepts, picture &rarr; text, mean recall",
    "unseen.text_to_image_mean_recall": "Unseen concepts, text &rarr; picture, mean recall",
    "zero_shot.top1_accuracy": "Zero-shot accuracy",
}
COLOURS = {"scratch": "init", "longer_scratch": "init", "two_stages": "stage2"}  # the others are like stage 1


def ablation_cards(ablation: Mapping) -> str:
    """The arms with their intervals, a card a metric, and the differences between arms."""
    arms = ablation["arms"]
    cards = []
    for name, label in METRICS.items():
        group, metric = name.split(".")
        entries = {arm: found[group][metric] for arm, found in arms.items() if metric in found.get(group, {})}
        if entries:
            scale = 1.1 * max(entry["high"] for entry in entries.values())
            rows = "".join(
                f"<tr><th>{escape(arms[arm]['title'])} <small>{_steps(arms[arm])}</small></th><td>{percent(entry)}</td>"
                f'<td class="wide">{interval_bar({COLOURS.get(arm, "stage1"): entry}, scale)}</td></tr>'
                for arm, entry in entries.items()
            )
            table = f'<div class="scroll"><table class="figures arms"><tbody>{rows}</tbody></table></div>'
            cards.append(f'<div class="card"><h3>{label} <small>%</small></h3>{table}</div>')
    return f'<div class="pair">{"".join(cards)}</div><div class="card">{_differences(ablation)}</div>'


def _steps(arm: Mapping) -> str:
    english = f", after {arm['english_steps']:,} English" if arm["english_steps"] else ""
    return f"{arm['chinese_steps']:,} Chinese steps{english}"


def _differences(ablation: Mapping) -> str:
    arms = ablation["arms"]
    rows = "".join(
        f"<tr><th>{escape(arms[row['arm']]['title'])} minus {escape(arms[row['minus']]['title'])}</th>"
        f"<td>{row['metric'].split('.')[0]}</td><td><b>{100 * row['value']:+.1f}</b></td>"
        f"<td>{100 * row['low']:+.1f} to {100 * row['high']:+.1f}</td>"
        f"<td>{'differs' if row['low'] * row['high'] > 0 else 'not told apart'}</td></tr>"
        for row in ablation["differences"]
    )
    head = (
        "<tr><th>text &rarr; picture, mean recall</th><th>concepts</th><th>points</th><th>interval</th><th></th></tr>"
    )
    return (
        f"<h3>Differences <small>{100 * ablation['confidence']:g} % interval over {len(ablation['seeds'])} "
        f"seeds (Student's t), each for itself; on these test queries</small></h3>"
        f'<div class="scroll"><table class="figures differences"><thead>{head}</thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
