"""The report: one self-contained page about a run, in English and Chinese."""

from html import escape
from importlib.resources import files
from string import Template

from clip_core.evaluate.report import sections
from clip_core.evaluate.report.chinese import bilingual
from clip_core.evaluate.report.pipeline import versions_line
from clip_core.evaluate.report.queries import sample
from clip_core.evaluate.report.results import tiles
from clip_core.evaluate.report.sections import Run


def page(run: Run) -> str:
    """The whole page as HTML; nothing in it is loaded from elsewhere."""
    parts = {
        "Model": sections.model(run),
        "Recall": sections.recall(run),
        "Queries": sections.queries(run),
        "Training": sections.training(run),
        "Data": sections.data(run),
        "Serving": sections.serving(run),
        "Ablation": sections.ablation(run),
        "Licences": sections.licences(run),
    }
    shown = {name: text for name, text in parts.items() if text}
    html = Template(_file("page.html")).substitute(
        style=_file("style.css"),
        lead=sections.lead(run),
        sample=sample(run.queries, run.read_image),
        tiles=tiles(run.metrics),
        links="".join(f'<a href="#{name.lower()}">{name}</a>' for name in shown),
        sections="\n".join(f'<section id="{name.lower()}">{text}</section>' for name, text in shown.items()),
        release=escape(run.deploy["release"]),
        versions=versions_line(run.deploy),
    )
    return bilingual(html)


def _file(name: str) -> str:
    return files("clip_core.evaluate.report").joinpath(name).read_text(encoding="utf-8")
