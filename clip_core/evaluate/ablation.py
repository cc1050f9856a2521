"""The ablation's arms compared: means over queries and seeds with intervals, and the differences between arms."""

from collections.abc import Mapping, Sequence

import numpy as np

from clip_core.config.evaluation import Evaluate
from clip_core.errors import UserError
from clip_core.evaluate.bootstrap import resampled_means

COMPARED = (  # an arm and the one it is measured against
    ("stage1", "scratch"),
    ("two_stages", "stage1"),
    ("two_stages", "direct"),
    ("two_stages", "scratch"),
    ("longer_scratch", "two_stages"),
)
DIFFERENCES = ("seen.text_to_image_mean_recall", "unseen.text_to_image_mean_recall")
COMPUTE_MATCHED = "longer_scratch"  # it spends the English steps on Chinese


def compare(runs: Sequence[Mapping], params: Evaluate, seed: int) -> dict:
    """The content of `reports/ablation.json`, from the answers of every arm with every seed."""
    seeds = sorted({run["seed"] for run in runs})
    by_arm = {arm: [run for run in runs if run["arm"] == arm] for arm in dict.fromkeys(run["arm"] for run in runs)}
    for arm, mine in by_arm.items():
        if sorted(run["seed"] for run in mine) != seeds:
            raise UserError(f"the arm {arm} has not been run with every seed of {seeds}: run `make ablation`")
        mine.sort(key=lambda run: run["seed"])
    means = {arm: _means(mine, params.num_bootstrap, seed) for arm, mine in by_arm.items()}
    tail = 50 * (1 - params.confidence)

    def bounds(draws: np.ndarray) -> dict[str, float]:
        low, high = np.percentile(draws, [tail, 100 - tail])
        return {"low": round(float(low), 4), "high": round(float(high), 4)}

    arms = {}
    for arm, mine in by_arm.items():
        facts = {key: mine[0][key] for key in ("title", "chinese_steps", "english_steps", "peak_lr")}
        metrics = {}
        for name, (values, draws) in means[arm].items():
            group, metric = name.split(".")
            metrics.setdefault(group, {})[metric] = {
                "value": round(float(values.mean()), 4),
                **bounds(draws),
                "chance": round(mine[0]["chance"][name], 4),
                "by_seed": [round(float(value), 4) for value in values],
            }
        arms[arm] = facts | metrics
    differences = [
        {
            "metric": name,
            "arm": arm,
            "minus": other,
            "value": round(float(means[arm][name][0].mean() - means[other][name][0].mean()), 4),
            **bounds(means[arm][name][1] - means[other][name][1]),
        }
        for name in DIFFERENCES
        for arm, other in COMPARED
        if name in means[arm]
    ]
    return {
        "benchmark": "test",
        "seeds": seeds,
        "confidence": params.confidence,
        "claim": claim(arms, differences),
        "arms": arms,
        "differences": differences,
    }


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


def _means(runs: Sequence[Mapping], num_bootstrap: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each metric its mean with each seed, and its means over resampled queries and seeds.

    Every arm is resampled alike, so that the difference of two arms is a paired one.
    """
    means = {}
    for name in runs[0]["values"]:
        values = np.array([run["values"][name] for run in runs]).T  # (queries, seeds)
        by_seed = resampled_means(values, num_bootstrap, seed)  # (draws, seeds)
        drawn = np.random.default_rng((seed, len(runs))).integers(len(runs), size=by_seed.shape)
        means[name] = values.mean(axis=0), np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1)
    return means
