"""The page of validation, which loads nothing from outside, and the same as JSON."""

import base64
import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from clip_core.data.aggregate import EDGES
from clip_core.data.pages import rendered
from clip_core.data.profile import check_decodable
from clip_core.data.verdict_on_all import Verdict, allowed, told
from clip_core.image import open_image, read_image

ReadPicture = Callable[[str, str], bytes | None]  # the pair table's file, image_id -> the encoded picture
SHOWN_SIDE = 96  # pixels
COUNTED = {
    "split": "Splits",
    "language": "Languages",
    "caption_kind": "Kinds of captions",
    "script": "Characters that only simplified or only traditional Chinese has",
    "licence": "Licences",
    "source": "Sources",
    "mode": "Formats and modes of the pictures",
}
DRAWN = {
    "caption_length": "Characters of a caption",
    "cjk_share": "Share of Chinese characters in a caption",
    "side": "Shorter side of a picture, pixels",
    "aspect": "Longer by shorter side of a picture",
    "bytes": "Size of an encoded picture",
}


def write_page(verdict: Verdict, folder: Path, read_picture: ReadPicture, max_pixels: int) -> None:
    """Writes `validation.json` and `index.html`; `read_picture` gives the pictures of its examples."""
    summary = summary_of(verdict)
    (folder / "validation.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(page_of(verdict, summary, read_picture, max_pixels), encoding="utf-8")


def summary_of(verdict: Verdict) -> dict[str, Any]:
    """All that is known, as JSON can hold it."""
    broken = verdict.aggregate.counts.get("broken", {})
    rules = [
        {"about": "row", "passed": rule.name not in broken, "bad_rows": broken.get(rule.name, 0), "observed": None}
        | {"name": rule.name, "description": rule.description, "allowed": allowed(rule), "total": verdict.read}
        for rule in verdict.rules
    ] + [
        {"about": "batch", "passed": finding.passed, "bad_rows": 0, "observed": verdict.observed[finding.rule.name]}
        | {"name": finding.rule.name, "description": finding.rule.description, "allowed": allowed(finding.rule)}
        | {"total": verdict.read}
        for finding in verdict.findings
    ]
    return {
        "passed": not verdict.refusals,
        "refusals": verdict.refusals,
        "read": verdict.read,
        "kept": verdict.read - verdict.rejected,
        "rejected": verdict.rejected,
        "rules": rules,
        "counts": verdict.aggregate.counts,
        "break_a_rule_and_stay": verdict.aggregate.stay,
        "histograms": {
            name: {"edges": EDGES[name], "counts": counts} for name, counts in verdict.aggregate.histograms.items()
        },
    }


def page_of(verdict: Verdict, summary: dict[str, Any], read_picture: ReadPicture, max_pixels: int) -> str:
    """The summary, examples of what failed and the histograms as an HTML page."""
    examples = {
        rule["name"]: [
            row | dict(zip(("picture", "no_picture"), _picture(row, read_picture, max_pixels), strict=True))
            for row in verdict.aggregate.examples[rule["name"]]
        ]
        for rule in summary["rules"]
        if rule["name"] in verdict.aggregate.examples
    }
    return rendered(
        "validation.html",
        summary=summary,
        rows_rules=[rule for rule in summary["rules"] if rule["about"] == "row"],
        all_rules=[rule | {"told": told(rule["observed"])} for rule in summary["rules"] if rule["about"] == "batch"],
        examples=examples,
        charts=[_chart(name, verdict) for name in DRAWN if any(verdict.aggregate.histograms.get(name, ()))],
        counted={title: verdict.aggregate.counts.get(name, {}) for name, title in COUNTED.items()},
        has_baseline=verdict.baseline is not None,
    )


def _picture(row: dict[str, Any], read_picture: ReadPicture, max_pixels: int) -> tuple[str | None, str]:
    """The example's picture as a small PNG in a data URI; if there is none to show, why."""
    if "image_id" not in row:
        return None, "a text without picture"
    if (data := read_picture(row["file"], row["image_id"])) is None:
        return None, "no such picture"
    try:
        image = open_image(data)
        check_decodable(image, data, max_pixels)
        image.draft(None, (SHOWN_SIDE, SHOWN_SIDE))
        image = read_image(image)
    except ValueError as error:
        return None, str(error)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", ""


def _chart(name: str, verdict: Verdict) -> dict[str, Any]:
    """The bars of a histogram, in percent, with those of the baseline where it has this one."""
    counts = verdict.aggregate.histograms[name]
    before = (verdict.baseline or {}).get(name, [])
    shares, shares_before = _percent(counts), _percent(before) or [None] * len(counts)
    highest = max([*shares, *(share for share in shares_before if share is not None)])
    drift = verdict.observed.get(f"drift_of_{name}")
    return {
        "title": DRAWN[name],
        "bars": list(zip(_bins(name), counts, shares, shares_before, strict=True)),
        "highest": highest,
        "drift": drift,
        "has_baseline": bool(before),
    }


def _percent(counts: list[int]) -> list[float]:
    return [100 * count / sum(counts) for count in counts] if any(counts) else []


def _bins(name: str) -> list[str]:
    edges = [_size(edge) if name == "bytes" else f"{edge:g}" for edge in EDGES[name]]
    is_single = [name == "caption_length" and b - a == 1 for a, b in pairwise(EDGES[name])]
    named = [a if single else f"{a} to {b}" for (a, b), single in zip(pairwise(edges), is_single, strict=True)]
    return [*named, f"{edges[-1]} or more"]


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB"):
        if num_bytes < 1024:
            return f"{num_bytes:g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:g} MiB"
