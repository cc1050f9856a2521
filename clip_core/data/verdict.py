"""The verdict over a batch: which rows are rejected and why, whether the batch may pass, and the page that shows it."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.data.expectations import OF_THE_BATCH, QUALITY, Finding
from clip_core.data.pairs import COLUMNS, HELD_OUT, ORIGIN

if TYPE_CHECKING:
    import pandas as pd

NUM_EXAMPLES = 20  # rejected rows that the page shows
STYLE = """
body { font: 16px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
.passed { color: #1a7f37; } .failed { color: #b42318; font-weight: 600; }
"""


@dataclass(frozen=True)
class Verdict:
    findings: list[Finding]
    num_read: int
    rejected: "pd.DataFrame"  # with reason, file and line; its index is the row of the profile
    stay: dict[str, dict[str, int]]  # split -> rule -> how many pictures, or texts, break it and stay in the benchmark
    refusals: list[str]  # why the batch may not pass; empty when it may


def judge(profile: "pd.DataFrame", findings: list[Finding], max_bad_share: float, file: Path) -> Verdict:
    """Rejects each row under the first rule that it breaks, and the batch when too many rows or a batch rule fail.

    A row of valid or test that breaks a rule about quality stays.
    """
    import pandas as pd

    reason: dict[int, str] = {}
    is_held_out = profile["split"].isin(HELD_OUT)
    for finding in findings:
        rows = finding.rows
        if finding.rule.name in QUALITY:
            rows = [row for row in rows if not is_held_out[row]]
        reason = dict.fromkeys(rows, finding.rule.name) | reason
    rejected = profile.loc[sorted(reason), [name for name in COLUMNS if name in profile.columns]]
    rejected = rejected.assign(
        reason=pd.Series(reason, dtype="object"),
        file=str(file),
        line=(pd.Series(rejected.index, rejected.index) + 1).where(profile["picture_has_pair"]),
    )
    refusals = [
        f"{finding.rule.name}: {finding.rule.description} is {observed(finding)}, allowed: {allowed(finding)}"
        for finding in findings
        if finding.rule.expectation in OF_THE_BATCH and not finding.passed
    ]
    if len(rejected) > max_bad_share * len(profile):
        share = len(rejected) / len(profile)
        refusals.append(f"{len(rejected)} of {len(profile)} rows are bad ({share:.1%}), allowed: {max_bad_share:.1%}")
    kept = profile[is_held_out & ~profile.index.isin(rejected.index)]
    return Verdict(findings, len(profile), rejected[[*ORIGIN, *COLUMNS]], staying(kept, findings), refusals)


def staying(kept: "pd.DataFrame", findings: list[Finding]) -> dict[str, dict[str, int]]:
    """By split and rule of QUALITY, how many ids of the rows `kept` in valid and test break it; those that any does."""
    found: dict[str, dict[str, int]] = {}
    for finding in findings:
        if counted := QUALITY.get(finding.rule.name):
            rows = kept[kept.index.isin(finding.rows)]
            for split, number in rows.groupby("split")[counted].nunique().items():
                found.setdefault(str(split), {})[finding.rule.name] = int(number)
    return found


def allowed(finding: Finding) -> str:
    """The rule's limits in words (`at least 16`), if its description does not say all."""
    limits = finding.rule.arguments
    if "min_value" in limits:
        return f"at least {limits['min_value']:,}"
    if "max_value" in limits:
        return f"at most {limits['max_value']:,}"
    return "" if limits.get("value_set", [True]) == [True] else ", ".join(limits["value_set"])


def observed(finding: Finding) -> str:
    """What a rule about the batch saw, in words."""
    return "unknown, since there is nothing to observe" if finding.observed is None else f"{finding.observed:,.4g}"


def write_page(verdict: Verdict, folder: Path) -> None:
    """Writes `validation.json` and `index.html`, which loads nothing from outside."""
    summary = {
        "passed": not verdict.refusals,
        "refusals": verdict.refusals,
        "read": verdict.num_read,
        "kept": verdict.num_read - len(verdict.rejected),
        "rejected": len(verdict.rejected),
        "rules": [
            {
                "name": finding.rule.name,
                "description": finding.rule.description,
                "allowed": allowed(finding),
                "about": "batch" if finding.rule.expectation in OF_THE_BATCH else "row",
                "passed": finding.passed,
                "bad_rows": len(finding.rows),
                "total": verdict.num_read,
                "observed": finding.observed,
            }
            for finding in verdict.findings
        ],
    }
    (folder / "validation.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(page_of(summary, verdict.rejected.head(NUM_EXAMPLES)), encoding="utf-8")


def page_of(summary: dict, examples: "pd.DataFrame") -> str:
    """The summary and some rejected rows as an HTML page."""
    outcome = (
        f"<p class=passed>This batch passes: {summary['kept']:,} of {summary['read']:,} rows kept, "
        f"{summary['rejected']:,} in quarantine.</p>"
        if summary["passed"]
        else f"<p class=failed>This batch is refused: {escape('; '.join(summary['refusals']))}.</p>"
    )
    rules = [
        [rule["name"], rule["description"], rule["allowed"], _found(rule), "passed" if rule["passed"] else "failed"]
        for rule in summary["rules"]
    ]
    shown = examples[["reason", "line", "image_id", "caption", "licence"]].astype("object")
    body = f"<h1>Validation of the data</h1>{outcome}<h2>Rules</h2>" + _table(
        ["rule", "what must hold", "allowed", "bad rows, or what was observed", ""], rules
    )
    if len(examples):
        body += f"<h2>The first rejected rows</h2>{_table(list(shown.columns), shown.to_numpy().tolist())}"
    head = f"<meta charset=utf-8><title>Validation of the data</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _found(rule: dict) -> str:
    if rule["about"] == "row":
        return f"{rule['bad_rows']:,} of {rule['total']:,}"
    return "nothing to observe" if rule["observed"] is None else f"{rule['observed']:,.6g}"


def _table(head: list[str], rows: list[list]) -> str:
    def line(tag: str, cells: list) -> str:
        marked = (f" class={cell}" if cell in ("passed", "failed") else "" for cell in cells)
        return (
            "<tr>"
            + "".join(f"<{tag}{m}>{escape(str(c))}</{tag}>" for m, c in zip(marked, cells, strict=True))
            + "</tr>"
        )

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"
