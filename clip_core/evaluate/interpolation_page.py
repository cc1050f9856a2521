"""The curve of an interpolation as one self-contained page."""

from collections.abc import Mapping

from clip_core.evaluate.report.bilingual import say
from clip_core.evaluate.report.charts import Line, chart
from clip_core.evaluate.report.rendering import rendered

COLOURS = {"seen": "stage1", "unseen": "init", "all": "stage2"}  # of style.css
CHARTS = {
    "mean_recall": "Mean recall, both ways",
    "text_to_image_mean_recall": "Text to image",
    "image_to_text_mean_recall": "Image to text",
}


def interpolation_page(curve: Mapping) -> str:
    """The page for the content of curve.json; nothing in it is loaded from elsewhere."""
    points = curve["points"]
    groups = [group for group in COLOURS if f"{group}.mean_recall" in points[0]]
    names = [name for name in points[0] if name != "alpha"]
    charts = [_chart(points, groups, name, title) for name, title in CHARTS.items()]
    return rendered("interpolation.html", curve=curve, names={name: _title(name) for name in names}, charts=charts)


def _chart(points: list, groups: list[str], name: str, title: str) -> dict:
    lines = [
        Line(group, COLOURS[group], [(p["alpha"], 100 * p[f"{group}.{name}"]) for p in points], dots=True)
        for group in groups
    ]
    return chart(say(title), lines, unit="%")


def _title(name: str) -> str:
    group, metric = name.split(".")
    return group + {"mean_recall": "", "text_to_image_mean_recall": ", by text"}.get(metric, ", by image")
