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
        yield svg.bars(f"|t| of cycles beside random: {call} (4.5 is suspicious)", "", values)


def _benchmark(figures: dict[str, Any]) -> Iterator[str]:
    """Of each group of shapes, how many times faster ours is than the fastest peer."""
    cases = [case for case in figures.get("cases", ()) if case["ratios"]]
    for group in dict.fromkeys(case["group"] for case in cases):
        values = [(case["name"], min(case["ratios"].values())) for case in cases if case["group"] == group]
        yield svg.bars(f"{group}: times the speed of the fastest peer there", "", values)


def _roofline(figures: dict[str, Any]) -> Iterator[str]:
    """Achieved rates below the roofs of the machine, over arithmetic intensity."""
    kernels = figures.get("kernels", ())
    if not kernels:
        return
    peak, bandwidth = figures["peak TFLOP/s"], figures["bandwidth TB/s"]
    intensities = [kernel["FLOP per byte"] for kernel in kernels]
    low, high, ridge = min(*intensities, 8.0), max(*intensities, 4096.0), peak / bandwidth
    roof = Line("roof", [(low, bandwidth * low), (ridge, peak), (high, peak)], dashed=True)
    points = [Line(k["name"], [(k["FLOP per byte"], k["TFLOP/s"])], marks_only=True) for k in kernels]
    yield svg.chart("Roofline", "FLOP per byte of DRAM", "TFLOP/s", [roof, *points], log_x=True, log_y=True)
