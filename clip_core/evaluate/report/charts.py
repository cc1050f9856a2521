"""Curves as the places of an inline SVG, which macros.html draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10

from clip_core.evaluate.report.bilingual import Said

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 12, 30  # margins


@dataclass(frozen=True)
class Line:
    """One curve: its name, its colour (a class of style.css) and its points."""

    name: Said | str
    colour: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def chart(
    title: Said, lines: Sequence[Line], unit: str = "", x_ticks: Sequence[float] = (), is_log: bool = False
) -> dict:
    """What the macro `chart` draws, empty lines left out; with a unit the ordinate begins at 0."""
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    y_ticks = ticks(0.0 if unit else min(ys), max(ys))
    x_ticks = x_ticks or ticks(0, max(xs))

    def across(x: float) -> float:
        first, last, x = ((log10(value) if is_log else value) for value in (x_ticks[0], x_ticks[-1], x))
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - first) / (last - first), 1)

    def up(y: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1)

    def drawn(line: Line) -> dict:
        places = [(across(x), up(y)) for x, y in line.points]
        return {
            "name": line.name,
            "colour": line.colour,
            "points": " ".join(f"{x},{y}" for x, y in places),
            "dots": places if line.dots else places[-1:],
            "last": f"{line.points[-1][1]:.3g}{unit}",
        }

    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "bottom": HEIGHT - BOTTOM,
        "lines": [drawn(line) for line in lines],
        "x_ticks": [(f"{x:g}", across(x)) for x in x_ticks],
        "y_ticks": [(f"{y:g}{unit}", up(y)) for y in y_ticks],
    }


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold `low` and `high` between them."""
    span = max(high - low, 1e-6)
    step = next(s for s in (m * 10.0 ** floor(log10(span) - 1) for m in (1, 2, 2.5, 5, 10, 20, 50)) if span / s <= 4.5)
    first, last = floor(low / step), -floor(-high / step)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
