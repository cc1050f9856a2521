"""`gates`: the metrics that a model must reach to be exported."""

from typing import Annotated

from pydantic import AfterValidator

from clip_core.config.section import Name, Share, resembling

RECALLS = tuple(
    f"{way}_{recall}"
    for way in ("text_to_image", "image_to_text")
    for recall in ("recall@1", "recall@5", "recall@10", "mean_recall", "map@r")
)
METRICS = (  # groups of a benchmark and what is measured of each, see clip_core/evaluate/measure.py
    (("seen", "unseen", "all", "unseen_words"), (*RECALLS, "mean_recall")),
    (("zero_shot",), ("top1_accuracy", "seen_top1_accuracy", "unseen_top1_accuracy")),
)


def _named_like_metrics(gates: dict[str, float]) -> dict[str, float]:
    known = [f"{group}.{metric}" for groups, metrics in METRICS for group in groups for metric in metrics]
    unknown = [f"no metric {name!r}{resembling(name, known)}" for name in gates if name not in known]
    if unknown:
        allowed = " and ".join(f"({' | '.join(groups)}).({' | '.join(metrics)})" for groups, metrics in METRICS)
        raise ValueError(f"{', '.join(unknown)}. Allowed are {allowed}")
    return gates


Gates = Annotated[dict[Name, Share], AfterValidator(_named_like_metrics)]  # metric of validation -> the least
