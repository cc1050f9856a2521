"""Drawings for the report: curves as inline SVG, intervals as bars of HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 12, 30


@dataclass(frozen=True)
class Line:
    """One curve: its name, its colour (a class of style.css) and its points."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def curves(lines: Sequence[Line], title: str, unit: str = "", from_zero: bool = False) -> str:
    """A line chart as an inline SVG figure; the last value of each line stands at its end, empty lines are left out."""
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    y_ticks = ticks(0.0 if from_zero else min(ys), max(ys))
    x_ticks = ticks(0, max(xs))
    low, high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / x_ticks[-1]
        return f"{across:.1f},{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low):.1f}"

    parts = []
    for y in y_ticks:
        x1, y1 = at(0, y).split(",")
        parts.append(f'<line class="grid" x1="{x1}" y1="{y1}" x2="{WIDTH - RIGHT}" y2="{y1}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{float(y1) + 3.5:.1f}" text-anchor="end">{y:g}{unit}</text>'
        )
    for x in x_ticks:
        x1, y1 = at(x, low).split(",")
        parts.append(f'<text class="tick" x="{x1}" y="{float(y1) + 17:.1f}" text-anchor="middle">{x:g}</text>')
    for line in lines:
        places = [at(x, y) for x, y in line.points]
        parts.append(f'<polyline class="curve {line.colour}" points="{" ".join(places)}"/>')
        for place in places if line.dots else places[-1:]:
            x1, y1 = place.split(",")
            parts.append(f'<circle class="dot {line.colour}" cx="{x1}" cy="{y1}" r="3.2"/>')
    legend = "".join(
        f'<span class="key {line.colour}">{escape(line.name)} <b>{line.points[-1][1]:.3g}{unit}</b></span>'
        for line in lines
    )
    label = escape(f"{title}; " + ", ".join(f"{line.name} ends at {line.points[-1][1]:.3g}{unit}" for line in lines))
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<span class="keys">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold `low` and `high` between them."""
    span = max(high - low, 1e-6)
    step = next(s for s in (m * 10.0 ** floor(log10(span) - 1) for m in (1, 2, 2.5, 5, 10, 20, 50)) if span / s <= 4.5)
    first, last = floor(low / step), -floor(-high / step)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def interval_bar(entries: Mapping[str, Mapping[str, float]], scale: float) -> str:
    """Values with their intervals on one line from 0 to `scale`; keys are colours, chance is a tick."""
    chance = next((entry["chance"] for entry in entries.values() if "chance" in entry), None)
    marks = "" if chance is None else f'<s style="left:{100 * chance / scale:.2f}%"></s>'
    for colour, entry in entries.items():
        low, high, value = (100 * min(entry[key] / scale, 1) for key in ("low", "high", "value"))
        marks += f'<i class="{colour}" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        marks += f'<b class="{colour}" style="left:{value:.2f}%"></b>'
    return f'<div class="bar" aria-hidden="true">{marks}</div>'


def percent(entry: Mapping[str, float]) -> str:
    """A value with its interval, in percent."""
    low, high = 100 * entry["low"], 100 * entry["high"]
    return f'<b>{100 * entry["value"]:.1f}</b> <span class="range">{low:.1f}&ndash;{high:.1f}</span>'
