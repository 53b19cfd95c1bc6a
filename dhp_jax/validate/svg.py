"""Line charts and bars as SVG text.

Our own, since a report must open anywhere and a validated machine need not have a plotting package: a chart here is a
few hundred lines of text, in the HTML report, in README and in the notebook alike.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

Point = tuple[float, float]

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 190, 40, 48
_KEY = 36  # from the right axis to a name in the legend
_LETTER = 7  # width, at most, of most letters
_COLORS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#525252", "#0e7490", "#a16207")


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: its name in the legend and its points."""

    name: str
    points: Sequence[Point]
    dashed: bool = False
    marks_only: bool = False


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Maps values to places."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool

    def at(self, value: float) -> float:
        low, high, value = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * ((value - low) / ((high - low) or 1))

    def ticks(self) -> list[float]:
        if self.logarithmic:
            steps = [
                2.0**e
                for e in range(math.ceil(math.log2(self.low) - 1e-9), math.floor(math.log2(self.high) + 1e-9) + 1)
            ]
            return steps[:: max(1, math.ceil(len(steps) / 8))]
        step = 10 ** math.floor(math.log10((self.high - self.low) or 1))
        step = next(step * m for m in (0.1, 0.2, 0.5, 1, 2) if (self.high - self.low) / (step * m) <= 8)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    title: str, x: str, y: str, lines: Sequence[Line], *, log_x: bool = False, log_y: bool = False, zero: bool = True
) -> str:
    """A line chart. `zero`: the y axis begins at 0, where it is not logarithmic."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    right = _WIDTH - max(_RIGHT, _KEY + _LETTER * max(len(line.name) for line in lines))
    across = _axis([p[0] for p in points], _LEFT, right, log_x, False)
    up = _axis([p[1] for p in points], _HEIGHT - _BOTTOM, _TOP, log_y, zero)
    parts = [*_frame(title, x, y, right), *_scales(across, up)]
    for index, line in enumerate(lines):
        parts += _drawn(line, index, across, up)
    return _svg(parts)


def bars(title: str, unit: str, values: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars, one for each name."""
    if not values:
        return ""
    step = 24
    height = _TOP + step * len(values) + 16
    most = max(value for _, value in values) or 1
    begin = max(258, 16 + _LETTER * max(len(name) for name, _ in values))
    parts = [_text(12, 22, title, size=15, weight="600")]
    for index, (name, value) in enumerate(values):
        y = _TOP + step * index
        width = max(0.0, value) / most * (_WIDTH - begin - 100)
        color = _COLORS[0 if "dhp" in name else 1]
        parts.append(_text(begin - 8, y + 15, name, anchor="end"))
        parts.append(f'<rect x="{begin}" y="{y + 3}" width="{width:.1f}" height="16" fill="{color}"/>')
        parts.append(_text(begin + 6 + width, y + 15, f"{_number(value)} {unit}".rstrip()))
    return _svg(parts, height)


def sheet(drawings: Sequence[str], columns: int) -> str:
    """Drawings of this module side by side, row by row; all have the size of a chart."""
    if not drawings:
        return ""
    rows = -(-len(drawings) // columns)
    parts = []
    for index, drawing in enumerate(drawings):
        across, down = index % columns * _WIDTH, index // columns * _HEIGHT
        parts.append(f'<g transform="translate({across} {down})">{drawing}</g>')
    return _svg(parts, rows * _HEIGHT, columns * _WIDTH)


def _axis(values: Sequence[float], begin: float, end: float, logarithmic: bool, zero: bool) -> _Axis:
    low, high = min(values), max(values)
    if logarithmic:
        return _Axis(low / 1.1, high * 1.1, begin, end, True)
    margin = 0.06 * ((high - low) or abs(high) or 1)
    return _Axis(0.0 if zero and low >= 0 else low - margin, high + margin, begin, end, False)


def _frame(title: str, x: str, y: str, right: float) -> list[str]:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        _text(12, 22, title, size=15, weight="600"),
        _text((_LEFT + right) / 2, _HEIGHT - 10, x, anchor="middle"),
        f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, y, anchor="middle")}</g>',
    ]


def _scales(across: _Axis, up: _Axis) -> list[str]:
    parts = []
    for tick in across.ticks():
        place = across.at(tick)
        parts.append(f'<path d="M{place:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#e5e5e5"/>')
        parts.append(_text(place, _HEIGHT - _BOTTOM + 16, _number(tick), anchor="middle"))
    for tick in up.ticks():
        place = up.at(tick)
        parts.append(f'<path d="M{_LEFT} {place:.1f}H{across.end}" stroke="#e5e5e5"/>')
        parts.append(_text(_LEFT - 6, place + 4, _number(tick), anchor="end"))
    return parts


def _drawn(line: Line, index: int, across: _Axis, up: _Axis) -> list[str]:
    color = _COLORS[index % len(_COLORS)]
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts = [] if line.marks_only else [f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>']
    if not line.dashed:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    key = _TOP + 18 * index
    parts.append(f'<path d="M{across.end + 12} {key}h18" stroke="{color}" stroke-width="3"{dash}/>')
    return [*parts, _text(across.end + _KEY, key + 4, line.name)]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12, weight: str = "400") -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="#262626"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(text)}</text>'


def _svg(parts: Sequence[str], height: int = _HEIGHT, width: int = _WIDTH) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    back = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'{head} font-family="system-ui, sans-serif">{back}{"".join(parts)}</svg>'
