"""The report: one self-contained page about a run, in English and Chinese."""

from collections.abc import Mapping
from importlib.metadata import version
from platform import python_version
from typing import TYPE_CHECKING

from clip_core.evaluate.headline import has_concepts
from clip_core.evaluate.report import results
from clip_core.evaluate.report.bilingual import Said, say
from clip_core.evaluate.report.queries import grids
from clip_core.evaluate.report.read import Run
from clip_core.evaluate.report.rendering import percent, rendered

if TYPE_CHECKING:
    import pandas as pd

SECTIONS = {  # in the order in which one asks
    "recall": "Recall",
    "models": "Comparison",
    "benchmarks": "Benchmarks",
    "before": "Changes",
    "slices": "Slices",
    "queries": "Queries",
    "robustness": "Robustness",
    "calibration": "Calibration",
    "cost": "Cost",
    "model": "Model",
    "training": "Training",
    "data": "Data",
    "serving": "Serving",
    "ablation": "Ablation",
    "licences": "Licences",
}
PROBES = {
    "other_script": "in the other script, simplified or traditional",
    "two_characters_swapped": "two characters swapped",
    "a_character_missing": "a character missing",
    "negated": "denied",
}
PACKAGES = ("torch", "timm", "transformers", "dvc", "great_expectations", "onnxruntime", "prefect")


def page(run: Run) -> str:
    """The whole page as HTML; nothing in it is loaded from elsewhere."""
    details, compared = run.details, results.compared(run.metrics)
    slices, bins = results.sliced(details["slices"]), details["calibration"]["bins"]
    lacking = {
        "models": not compared,
        "benchmarks": not run.benchmarks["rows"],
        "slices": not slices,
        "robustness": not details["probes"],
        "calibration": not bins,
        "ablation": run.ablation is None,
    }
    return rendered(
        "report.html",
        run=run,
        confidence=f"{100 * run.confidence:g}",
        sections={name: say(title) for name, title in SECTIONS.items() if not lacking.get(name)},
        lead=lead(run),
        tiles=results.figures(run.metrics),
        steps={stage: steps(lines["loss"]) for stage, lines in run.curves.items()},
        groups=results.groups(run.metrics),
        ways={"text_to_image": say("text &rarr; picture"), "image_to_text": say("picture &rarr; text")},
        measures=results.MEASURES,
        recall_charts=results.recall_charts(details),
        compared=compared,
        num_compared=sum(len(other["rows"]) for other in compared),
        before_rows=results.since(run.metrics, run.before.metrics["test"]) if run.before else [],
        grids=grids(details, run.read_image, has_concepts(run.metrics)),
        probe_titles={name: say(title) for name, title in PROBES.items()},
        benchmarks=results.benchmarks(run.benchmarks),
        slices=slices,
        calibration_chart=bins and results.calibration_chart(bins),
        cost=cost(run),
        training_charts=results.training_charts(run.curves),
        splits=[split_row(split, rows) for split, rows in run.pairs.items()],
        licences=[row for split, rows in run.pairs.items() for row in licence_rows(split, rows)],
        has_built_in=any(
            source.startswith(("emoji/", "iconpark/")) for rows in run.pairs.values() for source in set(rows.source)
        ),
        versions=[
            f"python {python_version()}",
            *(f"{name} {version(name)}" for name in PACKAGES),
            f"tritonserver {run.deploy['versions']['tritonserver']}",
        ],
    )


def lead(run: Run) -> Said:
    """The run in two sentences, the overall figure first."""
    first, size = run.metrics["all"]["text_to_image_recall@1"], run.metrics["all"]["num_candidates"]
    sources = {split: set(rows.source) for split, rows in run.pairs.items()}
    unknown = "" if sources["train"] & sources["test"] else say(", all drawn in a style that training never saw")
    kind = say("name" if "name" in set(run.pairs["test"].caption_kind) else "caption")
    return say(
        "A Chinese {} is the query, {} pictures are the candidates{}. The first picture is right in {} of 100 queries, "
        "{} times as often as by chance.",
        *(kind, f"{size:,}", unknown, percent(first["value"]), f"{first['value'] / first['chance']:.0f}"),
    )


def steps(losses: list[tuple[float, float]]) -> Said | str:
    """How long a stage trained; empty where it did not."""
    return say("{} steps", f"{losses[-1][0]:.0f}") if losses else ""


def cost(run: Run) -> list[tuple[Said, str, str, Said | str]]:
    """The final model's quality, sizes and times side by side: label, figure, unit, what stands below."""
    text, image = (run.num_bytes[tower] / 2**20 for tower in ("text", "image"))
    dim, quality = run.model["architecture"]["embed_dim"], run.metrics["all"]["text_to_image_mean_recall"]
    times = {
        "clip_text": say("a text as features"),
        "clip_image": say("a picture as features"),
        "clip_search": say("a search by text"),
    }
    return [
        (say("mean recall"), percent(quality["value"]), "%", say("all test pairs")),
        (say("both towers"), f"{text + image:.1f}", " MiB", say("text {}, image {}", f"{text:.1f}", f"{image:.1f}")),
        (say("a picture in the gallery"), f"{4 * dim:,}", " B", say("{} numbers", dim)),
        *(
            (label, f"{found['p50']:.1f}", " ms", f"p99 {found['p99']:.1f} ms")
            for name, label in times.items()
            if (found := run.deploy["latency_ms"].get(name))
        ),
    ]


def split_row(split: str, rows: "pd.DataFrame") -> Mapping:
    """What a split consists of; a picture without text, or a text without picture, is no pair."""
    pictures = _pictures(rows)
    return {
        "split": split,
        "pictures": len(pictures),
        "pairs": len(rows.dropna(subset=["image_id", "text_id"])),
        "concepts": rows.concept_id.nunique(),
        "unseen": int((~pictures.seen).sum()),
        "sources": sorted(set(rows.source)),
    }


def licence_rows(split: str, rows: "pd.DataFrame") -> list[Mapping]:
    """The licences of every source of pictures in a split."""
    return [
        {"source": source, "split": split, "pictures": len(mine), "licences": sorted(set(mine.licence))}
        for source, mine in _pictures(rows).groupby("source")
    ]


def _pictures(rows: "pd.DataFrame") -> "pd.DataFrame":
    """A row a picture; a text without one has none."""
    return rows.dropna(subset="image_id").drop_duplicates("image_id")
