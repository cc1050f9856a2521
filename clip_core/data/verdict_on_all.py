"""The verdict on all shards together, from what is known of each: whether the data may pass, and if not, why not."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clip_core.config.validation import Validate
from clip_core.data.across import KeyFacts
from clip_core.data.aggregate import Aggregate, merged
from clip_core.data.drift import DRIFTING, Histograms, drift_of, is_enough, read_baseline
from clip_core.data.expectations import Finding, Rule, findings_of, rules_about_all, rules_of


@dataclass(frozen=True)
class Verdict:
    """What the page shows, and the stage acts on."""

    aggregate: Aggregate
    rules: list[Rule]  # about rows; the aggregate counts the rows that break them
    findings: list[Finding]  # about all shards together
    observed: dict[str, float | None]  # what each rule about all saw; null where there is nothing to see
    baseline: Histograms | None
    refusals: list[str]  # why the data may not pass; empty when they may

    @property
    def read(self) -> int:
        return self.aggregate.counts.get("rows", {}).get("read", 0)

    @property
    def rejected(self) -> int:
        return self.aggregate.counts.get("rows", {}).get("rejected", 0)


def judge_all(aggregates: Iterable[Aggregate], facts: KeyFacts, params: Validate) -> Verdict:
    """Judges the shards' aggregates, in their order, and the `facts` about what was kept."""
    import pandas as pd

    total = merged(aggregates)
    baseline = read_baseline(Path(params.baseline)) if params.baseline and is_enough(total.histograms) else None
    observed = _observed(total, facts, baseline)
    rules = rules_about_all(params)
    findings = findings_of(pd.DataFrame([{"row": 0} | observed], dtype="float64").astype({"row": "int64"}), rules)
    verdict = Verdict(total, rules_of(params), findings, observed, baseline, [])
    verdict.refusals.extend(_refusal(finding, verdict, params) for finding in findings if not finding.passed)
    return verdict


def _observed(total: Aggregate, facts: KeyFacts, baseline: Histograms | None) -> dict[str, float | None]:
    """A value for each rule about all."""
    rows = total.counts.get("rows", {})
    drift = drift_of(total.histograms, baseline) if baseline else dict.fromkeys(DRIFTING)
    return {
        "batch_not_empty": rows.get("read", 0),
        "few_rows_are_bad": _share(rows.get("rejected", 0), rows.get("read", 0)),
        "batch_is_chinese": _share(total.sums.get("cjk_share", 0), total.sums.get("zh_captions", 0)),
        "captions_differ": _share(facts.captions - facts.distinct_captions, facts.captions),
        "pictures_differ": _share(facts.pictures - facts.distinct_pictures, facts.pictures),
        "splits_are_apart": _share(facts.pictures_in_several_splits, facts.distinct_pictures),
        **{f"drift_of_{name}": value for name, value in drift.items()},
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _refusal(finding: Finding, verdict: Verdict, params: Validate) -> str:
    rule = finding.rule
    if rule.name == "batch_not_empty":
        return f"{rule.name}: there is nothing to validate, not a single row"
    if rule.name == "few_rows_are_bad":
        rejected = verdict.aggregate.counts["rejected"]
        worst, number = max(rejected.items(), key=lambda item: item[1])
        what = next(known.description for known in verdict.rules if known.name == worst)
        if verdict.rejected == verdict.read:
            bad = f"every one of {verdict.read:,} rows is bad"
        else:
            share, most = verdict.rejected / verdict.read, params.max_bad_share
            bad = f"{verdict.rejected} of {verdict.read} rows are bad ({share:.1%}), allowed: {most:.1%}"
        return f"{rule.name}: {bad}; {number:,} of them break {worst} ({what})"
    return f"{rule.name}: {rule.description} is {told(verdict.observed[rule.name])}, allowed: {allowed(rule)}"


def allowed(rule: Rule) -> str:
    """The rule's limits in words (`at least 16`), if its description does not say all."""
    limits = rule.arguments
    if "min_value" in limits:
        return f"at least {limits['min_value']:,}"
    if "max_value" in limits:
        return f"at most {limits['max_value']:,}"
    return "" if limits.get("value_set", [True]) == [True] else ", ".join(limits["value_set"])


def told(observed: float | None) -> str:
    """What a rule about all saw, in words."""
    if observed is None:
        return "unknown, since there is nothing to observe"
    return f"{observed:,.4g}" if observed < 1000 else f"{observed:,.0f}"
