"""The plot of the loss curves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from training import LossCurve

# The second curve is a broad band under the first, so that equal curves are both seen.
CURVE_STYLES = (
    {"color": "#1f5fa8", "linewidth": 1.4, "markersize": 4, "zorder": 3},
    {"color": "#f4b98a", "linewidth": 5.0, "markersize": 9, "zorder": 2},
)
BASELINE_STYLES = (
    {"color": "#b0b0b0", "linewidth": 2.5},
    {"color": "#a8325e", "linewidth": 1.2, "linestyle": "--"},
)


def _draw_curve(axes: Axes, label: str, curve: LossCurve, style: Mapping) -> None:
    """Draws the training loss, averaged over a hundredth of the run at a time, and the held-out loss."""
    steps_per_point = max(1, len(curve.train) // 100)
    points = np.array_split(curve.train, len(curve.train) // steps_per_point)
    steps = np.cumsum([len(point) for point in points])
    losses = [point.mean() for point in points]
    axes.plot(steps, losses, **style, alpha=0.5, label=f"{label}, training")
    measured = np.array(list(curve.held_out.items()))
    axes.plot(*measured.T, **style, marker="o", label=f"{label}, held out ({curve.final:.3f})")


def _label_axes(axes: Axes) -> None:
    """Adds all that is not data; the limit cuts off the first steps, whose loss would flatten the rest."""
    axes.margins(x=0.02)
    axes.set_ylim(top=4.0)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Learning Python's standard library", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.2)
    axes.legend(frameon=False)


def save_loss_plot(path: Path, curves: Mapping[str, LossCurve], baselines: Mapping[str, float]) -> None:
    """Draws at most two loss curves and two baselines, by their labels, as a PNG image."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for (label, curve), style in zip(curves.items(), CURVE_STYLES, strict=False):
        _draw_curve(axes, label, curve, style)
    for (label, loss), style in zip(baselines.items(), BASELINE_STYLES, strict=True):
        axes.axhline(loss, **style, label=f"{label}, held out ({loss:.3f})")
    _label_axes(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
