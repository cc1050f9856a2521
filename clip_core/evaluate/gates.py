"""Gates: a model worse than allowed goes no further."""

from collections.abc import Iterator, Mapping

from clip_core.errors import UserError


def check_gates(metrics: Mapping, gates: Mapping[str, float]) -> None:
    """Raises UserError that names every metric below its limit; `metrics` is a benchmark's metrics.json."""
    values = dict(_values(metrics))
    unknown = sorted(set(gates) - set(values))
    if unknown:
        raise UserError(f"gates: no metric named {', '.join(unknown)}. There are: {', '.join(sorted(values))}")
    failed = [
        f"  {name} is {values[name]:.4f}, allowed from {least:g}"
        for name, least in gates.items()
        if not values[name] >= least
    ]  # a NaN is below every limit
    if failed:
        raise UserError(
            "the model is worse than the gates allow, so it is not exported:\n" + "\n".join(failed) + "\n"
            "Train longer or better (stage1, stage2 in params.yaml), or lower the limit under `gates` there."
        )


def _values(metrics: Mapping, path: str = "") -> Iterator[tuple[str, float]]:
    for name, entry in metrics.items():
        if isinstance(entry, Mapping) and "value" in entry:
            yield path + name, entry["value"]
        elif isinstance(entry, Mapping):
            yield from _values(entry, f"{path}{name}.")
