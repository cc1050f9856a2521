"""Pages about the data, from templates: what the data say is escaped, and nothing is loaded from elsewhere."""


def rendered(template: str, **values: object) -> str:
    """The template with its values; it stops at a name that it is not given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("clip_core.data", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values)
