"""The ablation's arms compared: each arm's mean over seeds, and the differences between arms, with intervals.

A seed is one experiment, so the seeds are what an interval counts: Student's t over them, for a difference over what
the two arms differ by with each seed. It tells what other seeds would give on these test queries. Resampling three or
five seeds would not do: it takes their spread for smaller than it is, and tells equal arms apart far too often.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from clip_core.errors import UserError

COMPARED = (  # an arm and the one it is measured against
    ("stage1", "scratch"),
    ("two_stages", "stage1"),
    ("two_stages", "direct"),
    ("two_stages", "scratch"),
    ("two_stages", "random_text"),
    ("longer_scratch", "two_stages"),
)
DIFFERENCES = ("seen.text_to_image_mean_recall", "unseen.text_to_image_mean_recall")
COMPUTE_MATCHED = "longer_scratch"  # it spends the English steps on Chinese


def compare(runs: Sequence[Mapping], confidence: float) -> dict:
    """The content of `reports/ablation.json`, from the answers of every arm with every seed."""
    seeds = sorted({run["seed"] for run in runs})
    by_arm = {arm: [run for run in runs if run["arm"] == arm] for arm in dict.fromkeys(run["arm"] for run in runs)}
    for arm, mine in by_arm.items():
        if sorted(run["seed"] for run in mine) != seeds:
            raise UserError(f"the arm {arm} has not been run with every seed of {seeds}: run `make ablation`")
        mine.sort(key=lambda run: run["seed"])
    by_seed = {
        arm: {name: np.array([np.mean(run["values"][name]) for run in mine]) for name in mine[0]["values"]}
        for arm, mine in by_arm.items()
    }
    arms = {}
    for arm, mine in by_arm.items():
        facts = {key: mine[0][key] for key in ("title", "chinese_steps", "english_steps", "peak_lr")}
        metrics = {}
        for name, values in by_seed[arm].items():
            group, metric = name.split(".")
            entry = over_seeds(values, confidence)
            bounds = {"low": max(entry["low"], 0.0), "high": min(entry["high"], 1.0)}  # a share has no others
            chance = {"chance": round(mine[0]["chance"][name], 4)}
            metrics.setdefault(group, {})[metric] = entry | bounds | chance | {"by_seed": rounded(values)}
        arms[arm] = facts | metrics
    differences = [
        {"metric": name, "arm": arm, "minus": other, **over_seeds(each, confidence), "by_seed": rounded(each)}
        for name in DIFFERENCES
        for arm, other in COMPARED
        if name in by_seed[arm]
        for each in [by_seed[arm][name] - by_seed[other][name]]
    ]
    return {
        "benchmark": "test",
        "seeds": seeds,
        "confidence": confidence,
        "claim": claim(arms, differences),
        "arms": arms,
        "differences": differences,
    }


def over_seeds(values: np.ndarray, confidence: float) -> dict[str, float]:
    """The mean of `values`, one a seed, with Student's t interval: as wide as so few of them can tell."""
    from scipy.special import stdtrit

    half = stdtrit(len(values) - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return dict(zip(("value", "low", "high"), rounded(np.array([mean, mean - half, mean + half])), strict=True))


def rounded(values: np.ndarray) -> list[float]:
    """The values to four digits."""
    return [round(float(value), 4) for value in values]


def claim(arms: Mapping, differences: Sequence[Mapping]) -> str:
    """What the differences allow to be said: each with its direction, or that its interval holds zero."""
    equal = [row for row in differences if COMPUTE_MATCHED not in (row["arm"], row["minus"])]
    matched = [row for row in differences if COMPUTE_MATCHED in (row["arm"], row["minus"])]
    texts = [_told(arms, equal, "At equal Chinese steps, given an English image tower for free (the paper's framing)")]
    if matched:
        texts.append(_told(arms, matched, "When the English steps are spent on Chinese as well, from scratch"))
    return " ".join(texts)


def _told(arms: Mapping, differences: Sequence[Mapping], framing: str) -> str:
    parts = []
    for name in dict.fromkeys(row["metric"] for row in differences):
        rows = [_verdict(arms, row) for row in differences if row["metric"] == name]
        parts.append(f"on {name.split('.')[0]} concepts {', '.join(rows)}")
    return f"{framing}: {'; '.join(parts)}."


def _verdict(arms: Mapping, row: Mapping) -> str:
    arm, other = (f'"{arms[row[key]]["title"]}"' for key in ("arm", "minus"))
    if row["low"] * row["high"] <= 0:
        return f"{arm} and {other} are not told apart"
    return f"{arm} is {'above' if row['low'] > 0 else 'below'} {other} ({100 * row['value']:+.1f} points)"
