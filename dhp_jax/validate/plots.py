"""The drawings of a report, from the figures of its checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dhp_jax.validate import svg
from dhp_jax.validate.outcome import Check
from dhp_jax.validate.svg import Line


def of(check: Check) -> list[str]:
    """SVG drawings of what a check measured; none for most checks."""
    draw = {"timing": _timing, "benchmark": _benchmark, "roofline": _roofline}.get(check.name)
    return [drawing for drawing in draw(check.figures) if drawing] if draw else []


def _timing(figures: dict[str, Any]) -> Iterator[str]:
    for call, seen in figures.get("calls", {}).items():
        values = [(name, abs(found["t"])) for name, found in seen["differences"].items()]
        yield svg.bars(f"largest |t| of each class beside random: {call} (4.5 is suspicious)", "", values)


def _benchmark(figures: dict[str, Any]) -> Iterator[str]:
    for case in figures.get("cases", ()):
        values = [(name, 1e6 * found["seconds"]) for name, found in case["figures"].items()]
        yield svg.bars(case["name"], "us", values)


def _roofline(figures: dict[str, Any]) -> Iterator[str]:
    """Achieved rates below the roofs of the machine, over arithmetic intensity."""
    kernels = figures.get("kernels", ())
    if not kernels:
        return
    peak, bandwidth = figures["peak TFLOP/s"], figures["bandwidth TB/s"]
    intensities = [kernel["FLOP per byte"] for kernel in kernels]
    low, high, ridge = min(*intensities, 8.0), max(*intensities, 4096.0), peak / bandwidth
    roof = Line("roof", [(low, bandwidth * low), (ridge, peak), (high, peak)], dashed=True)
    points = [Line(k["name"][:24], [(k["FLOP per byte"], k["TFLOP/s"])], marks_only=True) for k in kernels]
    yield svg.chart("Roofline", "FLOP per byte of DRAM", "TFLOP/s", [roof, *points], log_x=True, log_y=True)
