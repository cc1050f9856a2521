"""Whether a candidate is better than what serves: asked the same queries, and nowhere worse than allowed."""

from typing import NamedTuple

from clip_core.config.evaluation import Evaluate
from clip_core.config.promotion import Promotion
from clip_core.evaluate.answers import Answers, answers_of
from clip_core.evaluate.benchmark import Benchmark
from clip_core.evaluate.embed import Features
from clip_core.evaluate.measure import difference
from clip_core.evaluate.slices import parts_of

ByGroup = dict[str, dict[str, Answers]]
OF_SLICES = "text_to_image_mean_recall"


class Check(NamedTuple):
    """One of the reasons for a decision."""

    name: str
    passed: bool
    told: str  # the figures


def quality_checks(
    ours: Features, theirs: Features, benchmark: Benchmark, params: Promotion, how: Evaluate, seed: int
) -> list[Check]:
    """Of the candidate (`ours`) against what serves: the main metric, and every slice with queries enough.

    It is better when the whole interval of the paired bootstrap lies above zero: of candidates that are as good as what
    serves that takes in (1 - confidence) / 2. Slices are judged by their plain difference, which protects those who ask
    there and finds no one better.
    """
    groups = sorted({params.metric.partition(".")[0], "all"})
    mine, its = (answers_of(features, benchmark, groups) for features in (ours, theirs))
    return [_main_check(mine, its, params, how, seed), *_slice_checks(mine, its, benchmark, params)]


def _main_check(all_mine: ByGroup, all_its: ByGroup, params: Promotion, how: Evaluate, seed: int) -> Check:
    group, metric = params.metric.split(".")
    mine, its = all_mine.get(group), all_its.get(group)
    if mine is None or its is None:
        return Check(params.metric, False, f"the test asks nothing {group}: choose another promotion.metric")
    found = difference(mine[metric], its[metric], how, seed)
    is_better, is_worse = found["low"] > 0, found["high"] < 0
    passed = is_better or (params.equal == "promote" and not is_worse)
    told = "better" if is_better else "worse" if is_worse else "not told apart"
    values = f"{_points(mine[metric].values.mean())} against {_points(its[metric].values.mean())}"
    interval = f"{_points(found['value'])} [{_points(found['low'])}, {_points(found['high'])}]"
    return Check(params.metric, passed, f"{told}: {values}, difference {interval}, p = {found['p_value']:.4f}")


def _slice_checks(mine: ByGroup, its: ByGroup, benchmark: Benchmark, params: Promotion) -> list[Check]:
    lost = its["all"][OF_SLICES].values.astype(float) - mine["all"][OF_SLICES].values
    checks = []
    for by, limit in sorted(params.max_slice_loss.items()):
        parts = {name: rows for kind, name, rows in parts_of(benchmark) if kind == by}
        losses = {name: float(lost[rows].mean()) for name, rows in parts.items() if rows.sum() >= params.min_queries}
        if losses:
            worst = max(losses, key=lambda name: losses[name])
            told = f"of {len(losses)} the most is lost by {worst}: {_points(losses[worst])}, allowed {_points(limit)}"
            checks.append(Check(f"slices by {by}", losses[worst] <= limit, told))
    return checks


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
