"""The windows of queries that a release was asked, as one self-contained page."""

from collections.abc import Mapping
from pathlib import Path

from clip_core.evaluate.report.rendering import environment

TEMPLATE = Path(__file__).with_name("drift_page.html")


def drift_page(seen: Mapping) -> str:
    """The page for the content of serving/watch/<release>.json; nothing in it is loaded from elsewhere."""
    names = next(([check["name"] for check in one["checks"]] for one in seen["windows"] if one["checks"]), [])
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(seen=seen, names=names)
