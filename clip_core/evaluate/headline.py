"""The few figures that a run is known by: `reports/metrics.json`."""

from collections.abc import Mapping

SIZES = (  # beside num_queries and num_candidates, where there are such
    "num_pictures_without_text",  # candidates that ask nothing
    "num_texts_without_picture",  # the same
    "text_to_image_num_units",  # what is drawn for the intervals: queries that share a right answer are one
    "image_to_text_num_units",
)
KEPT = (
    "text_to_image_recall@1",
    "text_to_image_recall@5",
    "text_to_image_recall@10",
    "text_to_image_mean_recall",
    "image_to_text_mean_recall",
    "mean_recall",
    "top1_accuracy",
    "seen_top1_accuracy",
    "unseen_top1_accuracy",
    "num_queries",
    "num_candidates",
    *SIZES,
)


def has_concepts(metrics: Mapping) -> bool:
    """Whether the data name concepts; without them every text counts as seen, whether training had it or not."""
    return "unseen" in metrics or "zero_shot" in metrics


def headline(benchmarks: Mapping[str, Mapping], confidence: float) -> dict:
    """The headline metrics of each benchmark's metrics.json, without those of earlier models, to six digits."""
    groups = {
        name: {group: _kept(entries) for group, entries in metrics.items() if group != "others"}
        for name, metrics in benchmarks.items()
    }
    return {"confidence": confidence, **groups}


def _kept(entries: Mapping) -> dict:
    return {name: _rounded(entry) for name, entry in entries.items() if name in KEPT}


def _rounded(entry: Mapping[str, float] | int) -> dict[str, float] | int:
    return {key: round(value, 6) for key, value in entry.items()} if isinstance(entry, Mapping) else entry
