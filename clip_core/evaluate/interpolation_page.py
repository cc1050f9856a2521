"""The curve of an interpolation as one self-contained page."""

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template

from clip_core.evaluate.report.charts import Line, curves

COLOURS = {"seen": "stage1", "unseen": "init", "all": "stage2"}  # of style.css
CHARTS = {
    "mean_recall": "Mean recall, both ways",
    "text_to_image_mean_recall": "Text to image",
    "image_to_text_mean_recall": "Image to text",
}
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Between two models</title>
<style>
$style</style>
</head>
<body>
<header><h1>Between two models</h1>
<p class="lead">Weights mixed linearly, from weights <code>$before</code> (alpha 0) to <code>$after</code> (alpha 1).
Chosen by $chosen_by: alpha <b>$chosen</b>.</p></header>
<main><div class="charts">$charts</div>
<section><div class="scroll"><table><thead><tr><th>alpha</th>$titles</tr></thead>
<tbody>
$rows
</tbody></table></div></section></main>
<footer><p>Mean of recall at 1, 5 and 10, in percent; a group's queries are asked among its own pictures and texts.</p>
</footer>
</body>
</html>
""")


def interpolation_page(curve: Mapping) -> str:
    """The page for the content of curve.json; nothing in it is loaded from elsewhere."""
    points = curve["points"]
    groups = [group for group in COLOURS if f"{group}.mean_recall" in points[0]]
    names = [name for name in points[0] if name != "alpha"]
    return PAGE.substitute(
        style=files("clip_core.evaluate.report").joinpath("style.css").read_text(encoding="utf-8"),
        charts="".join(_chart(points, groups, name, title) for name, title in CHARTS.items()),
        titles="".join(f"<th>{_title(name)}</th>" for name in names),
        rows="\n".join(_row(point, names, point["alpha"] == curve["chosen"]) for point in points),
        chosen=f"{curve['chosen']:g}",
        chosen_by="hand" if curve["chosen_by"] == "hand" else "the mean recall of all concepts",
        **{end: escape(weights) for end, weights in curve["weights"].items()},
    )


def _chart(points: list, groups: list[str], name: str, title: str) -> str:
    lines = [
        Line(group, COLOURS[group], [(p["alpha"], 100 * p[f"{group}.{name}"]) for p in points], dots=True)
        for group in groups
    ]
    return curves(lines, title, unit="%")


def _title(name: str) -> str:
    group, metric = name.split(".")
    way = {"mean_recall": "", "text_to_image_mean_recall": ", by text", "image_to_text_mean_recall": ", by image"}
    return escape(group + way[metric])


def _row(point: Mapping[str, float], names: list[str], is_chosen: bool) -> str:
    cells = "".join(f"<td>{100 * point[name]:.1f}</td>" for name in names)
    mark = ' class="yes" title="chosen"' if is_chosen else ""
    return f"<tr><th{mark}>{point['alpha']:g}</th>{cells}</tr>"
