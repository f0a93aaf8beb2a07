"""Charts as inline SVG: lines, points with error bars and steps, in colours of the page's CSS.

Text in them is escaped. What is not finite is left out, and a line is broken there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mdlm.view.html import text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 300, 70, 18, 12, 46
"""Size of the drawing and its margins, in its own units, about pixels."""
MOST = 400
"""Points of a line, at most; of longer ones the lowest and the highest of neighbours are drawn."""

Number = float | None
Style = Literal["line", "faint", "dashed", "points"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of a chart. `color` is the number or name of a colour of the page; `error` has the
    standard error of each point. A "faint" line does not decide the range of the axes."""

    name: str
    color: int | str
    x: Sequence[Number]
    y: Sequence[Number]
    error: Sequence[Number] | None = None
    style: Style = "line"

    @property
    def points(self) -> list[tuple[float, float, float]]:
        """The finite points, with their errors (0: none)."""
        errors = self.error or [None] * len(self.x)
        rows = zip(self.x, self.y, errors, strict=True)
        return [
            (x, y, e if e is not None and math.isfinite(e) else 0.0)
            for x, y, e in rows
            if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
        ]


def chart(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    zero: bool = False,
    across: tuple[float, float] | None = None,
) -> str:
    """Returns the chart; `x` and `y` name the axes. It is empty if there is nothing to draw.

    The horizontal axis is the range `across`, by default from 0 to the last point. With `zero` the
    vertical one begins at 0.
    """
    ranged = [p for one in series if one.style != "faint" for p in one.points]
    if not ranged:
        return ""
    low = 0.0 if zero else min(v - e for _, v, e in ranged)
    last = max(p[0] for p in ranged)
    # A little after the last point, so that it is whole.
    whole = min(0.0, *(p[0] for p in ranged)), last * 1.015 if last > 0 else 1.0
    axes = _Axes(across or whole, padded(low, max(v + e for _, v, e in ranged)))
    label = text(f"{y} over {x}: {', '.join(dict.fromkeys(one.name for one in series))}")
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{axes.drawn(x, y)}"
        f'<svg x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{_PLOT}"'
        f' viewBox="{LEFT} {TOP} {WIDTH - LEFT - RIGHT} {_PLOT}">'
        f"{''.join(_drawn(one, axes) for one in series)}</svg></svg>"
    )


_PLOT = HEIGHT - TOP - BOTTOM


@dataclass(frozen=True)
class _Axes:
    """The ranges of both axes."""

    across: tuple[float, float]
    up: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of a point in the drawing."""
        (left, right), (low, high) = self.across, self.up
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - y) / (high - low) * _PLOT

    def drawn(self, x: str, y: str) -> str:
        """Returns lines, numbers and names of both axes."""
        parts, bottom = [], HEIGHT - BOTTOM
        for value in ticks(*self.up):
            _, at = self.at(self.across[0], value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}"')
            parts.append(f' y2="{at:.1f}"/><text x="{LEFT - 7}" y="{at + 4:.1f}"')
            parts.append(f' text-anchor="end">{shown(value)}</text>')
        for value in ticks(*self.across):
            at, _ = self.at(value, self.up[0])
            parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">')
            parts.append(f"{shown(value)}</text>")
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}"')
        parts.append(f' y2="{bottom}"/><text class="name" x="{middle}" y="{HEIGHT - 8}"')
        parts.append(f' text-anchor="middle">{text(x)}</text><text class="name"')
        parts.append(f' transform="translate(14 {TOP + _PLOT / 2}) rotate(-90)"')
        parts.append(f' text-anchor="middle">{text(y)}</text>')
        return "".join(parts)


def _drawn(one: Series, axes: _Axes) -> str:
    points = one.points
    if one.style != "points":
        places = (axes.at(x, y) for x, y, _ in thinned(points))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        return f'<polyline class="s{one.color} {one.style}" points="{path}"/>'
    parts = []
    for x, y, error in points:
        across, up = axes.at(x, y)
        if error:
            ends = [axes.at(x, y + sign * error)[1] for sign in (-1, 1)]
            parts.append(f'<path class="s{one.color}" d="M{across:.1f} {ends[0]:.1f}V{ends[1]:.1f}')
            parts.append("".join(f"M{across - 4:.1f} {end:.1f}h8" for end in ends) + '"/>')
        title = text(f"{one.name}: {shown(x)}, {y:.4g}" + (f" +- {error:.2g}" if error else ""))
        parts.append(f'<circle class="s{one.color}" cx="{across:.1f}" cy="{up:.1f}" r="3.5">')
        parts.append(f"<title>{title}</title></circle>")
    return "".join(parts)


def thinned(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Returns at most about `MOST` points: of each group of neighbours the lowest and the highest,
    in order."""
    if len(points) <= MOST:
        return list(points)
    size, out = math.ceil(2 * len(points) / MOST), []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        ends = {min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])}
        out += sorted(ends)
    return out


def padded(low: float, high: float, share: float = 0.06) -> tuple[float, float]:
    """Returns a range with a margin, but below 0, and never empty."""
    if high > low:
        return low - (share * (high - low) if low else 0.0), high + share * (high - low)
    around = abs(low) / 10 or 1.0
    return low - around, high + around


def ticks(low: float, high: float) -> list[float]:
    """Returns round numbers, about five, from `low` to `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def shown(value: float) -> str:
    """Returns a number as the axes show it."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
