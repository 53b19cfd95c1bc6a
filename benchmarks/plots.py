"""The plots of README and of attention.ipynb, from results files. SVG text by dhp_jax.validate.svg, which says why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import results
import shapes

from dhp_jax.validate import svg
from dhp_jax.validate.svg import Line

Case = Mapping[str, Any]


def throughput(cases: Sequence[Case], channels: int, *, is_causal: bool, gradient: bool) -> str:
    """TFLOP/s against length, ours and every peer's; empty where there is no such case."""
    chosen = sorted(
        (case for case in cases if case["group"] == "grid" and _is(case, channels, is_causal, gradient)),
        key=lambda case: case["shape"]["S"],
    )
    lines = [
        Line(name, [(case["shape"]["S"], results.tflops(case, name)) for case in chosen if name in case["figures"]])
        for name in results.implementations(chosen)
    ]
    mask, which = "causal" if is_causal else "full", "backward" if gradient else "forward"
    title = f"{which}, {mask}, D={channels}, bfloat16"
    return svg.chart(title, "length S, at B S = 16384", "TFLOP/s", [line for line in lines if line.points], log_x=True)


def grid(cases: Sequence[Case], *, gradient: bool) -> str:
    """All of the grid, one way: a drawing for each width and mask, ours and every peer's; empty where there is none."""
    drawings = [
        throughput(cases, channels, is_causal=is_causal, gradient=gradient)
        for channels in (64, 128, 256)
        for is_causal in (False, True)
    ]
    return svg.sheet([drawing for drawing in drawings if drawing], 2)


def _is(case: Case, channels: int, is_causal: bool, gradient: bool) -> bool:
    shape = case["shape"]
    return (shape["D"], shape["is_causal"], shape["gradient"]) == (channels, is_causal, gradient)


def times(cases: Sequence[Case], group: str) -> Iterator[str]:
    """Time of each implementation, one drawing a case of a group."""
    for case in cases:
        if case["group"] == group:
            values = [(name, 1e6 * found["seconds"]) for name, found in case["figures"].items()]
            if "floor_seconds" in case:
                values.append(("floor", 1e6 * case["floor_seconds"]))
            yield svg.bars(case["name"], "us", values)


def roofline(cases: Sequence[Case]) -> str:
    """Our forward calls below the roofs of an H200, over operations per byte of the arrays."""
    points = []
    for case in cases:
        shape = shapes.Shape(**case["shape"]) if case["group"] != "cpu" else None
        if shape and not shape.gradient and shape.dtype != "float32":
            points.append((shape.operations / shape.array_bytes, results.tflops(case, results.OURS)))
    if not points:
        return ""
    ridge, peak = shapes.PEAK_FLOPS / shapes.BYTES_PER_SECOND, 1e-12 * shapes.PEAK_FLOPS
    ends = min(x for x, _ in points), max(max(x for x, _ in points), 2 * ridge)
    slope = [(x, 1e-12 * shapes.BYTES_PER_SECOND * x) for x in (min(ends[0], ridge), ridge)]
    lines = [Line("roof", [*slope, (ends[1], peak)], dashed=True), Line(results.OURS, points, marks_only=True)]
    return svg.chart("Roofline, forward", "FLOP per byte of the arrays", "TFLOP/s", lines, log_x=True, log_y=True)


def memory(cases: Sequence[Case]) -> str:
    """Memory of a call beyond its arguments and results, on the CPU."""
    values = [(f"dhp_jax {case['name']}", case["extra_bytes"] / 2**20) for case in cases if "extra_bytes" in case]
    return svg.bars("memory beyond arguments and results", "MiB", values)


def secrecy(cases: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Time against the true length inside one padded shape: implementation -> (true length, us)."""
    lines = [Line(name, points) for name, points in cases.items()]
    return svg.chart("what a true length costs, one padded shape", "true length", "us", lines)


def t_statistics(figures: Mapping[str, Any]) -> Iterator[str]:
    """Largest |t| of each class of secrets beside random, from the timing check of a validation report."""
    for call, seen in figures.get("calls", {}).items():
        values = [(name, abs(found["t"])) for name, found in seen["differences"].items()]
        yield svg.bars(f"|t| of SM cycles beside random data: {call} (4.5 is suspicious)", "", values)
