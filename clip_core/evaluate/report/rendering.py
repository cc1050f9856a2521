"""The report's templates: what data say is escaped, and nothing is loaded from elsewhere."""

from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from clip_core.evaluate.report.bilingual import say

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(template: str, **values: object) -> str:
    """The template with its values."""
    return environment().get_template(template).render(values)


@cache
def environment() -> "Environment":
    """Where the templates lie and what they may use; one stops at a name that it is not given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("clip_core.evaluate.report", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    names: dict[str, Any] = made.globals
    names |= {"_": say, "code": Markup("<code>{}</code>").format}
    made.filters |= {"n": "{:,}".format, "percent": percent, "points": points}
    return made


def percent(share: float, digits: int = 1) -> str:
    """A share as a number of percent."""
    return f"{100 * share:.{digits}f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
