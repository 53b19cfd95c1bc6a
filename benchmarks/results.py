"""Results files: what attention.py and cpu.py write, and tables and plots are made from. schema.json is their form."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).parent
SCHEMA = FOLDER / "schema.json"
VERSION = 1
OURS = "dhp_jax"

Case = Mapping[str, Any]


def save(path: pathlib.Path, told: Mapping[str, Any]) -> None:
    """Writes a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def load(path: pathlib.Path) -> dict[str, Any]:
    """Reads a results file; raises ValueError for one of another form."""
    told = json.loads(path.read_text(encoding="utf-8"))
    if told.get("version") != VERSION:
        raise ValueError(f"{path} has version {told.get('version')!r}; this program reads {VERSION}. Measure again.")
    return dict(told)


def history() -> list[pathlib.Path]:
    """The kept results on a GPU, oldest first by the date that they hold."""
    return sorted((FOLDER / "history").glob("*.json"), key=lambda path: (load(path)["provenance"]["date"], path.name))


def case(
    name: str, group: str, operations: float, runs: Sequence[Mapping[str, Mapping[str, Any]]], **more: Any
) -> dict[str, Any]:
    """One case. Each run has figures by implementation: seconds, spread_percent, and what else timer.Timing has.

    What is kept of several runs is the middle one: of an implementation, by its time; of a ratio, by the ratio.
    """
    names = list(runs[0])
    figures = {name: sorted((run[name] for run in runs), key=_seconds)[len(runs) // 2] for name in names}
    ratios = {
        peer: statistics.median(_seconds(run[peer]) / _seconds(run[OURS]) for run in runs)
        for peer in names
        if peer != OURS
    }
    told = {"name": name, "group": group, "operations": operations, "figures": figures, "ratios": ratios}
    return {**told, "runs": len(runs), **more}


def _seconds(figure: Mapping[str, Any]) -> float:
    return float(figure["seconds"])


def tflops(case: Case, name: str) -> float:
    """Rate of an implementation in a case."""
    return 1e-12 * float(case["operations"]) / float(case["figures"][name]["seconds"])


def implementations(cases: Iterable[Case]) -> list[str]:
    """Names of all that any case has a time of, ours first."""
    names = dict.fromkeys(name for each in cases for name in each["figures"])
    return sorted(names, key=lambda name: name != OURS)


def table(cases: Sequence[Case], unit: str) -> str:
    """Cases as Markdown: a figure of each implementation, TFLOP/s or us, and how many times faster ours is."""
    names = implementations(cases)
    rivals = [name for name in names if name != OURS]
    head = ["case", *names, *(f"times {name}" for name in rivals)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for each in cases:
        cells = [each["name"], *(_cell(each, name, unit) for name in names)]
        cells += [f"{each['ratios'][name]:.2f}" if name in each["ratios"] else "" for name in rivals]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(case: Case, name: str, unit: str) -> str:
    if name not in case["figures"]:
        return "-"
    spread = case["figures"][name]["spread_percent"]
    value = tflops(case, name) if unit == "TFLOP/s" else 1e6 * case["figures"][name]["seconds"]
    return f"{value:.{0 if value >= 100 else 1}f} (+-{spread:.1f} %)"


def phases(cases: Sequence[Case], unit: str) -> str:
    """Cases that were timed long enough as Markdown: of each implementation burst, median and sustained, and clocks."""
    lines = ["| case | | burst | median | sustained | SM MHz |", "|---|---|--:|--:|--:|---|"]
    for each in cases:
        for name, figure in each["figures"].items():
            seconds = (figure[key] for key in ("burst_seconds", "seconds", "sustained_seconds"))
            values = (1e-12 * each["operations"] / s if unit == "TFLOP/s" else 1e6 * s for s in seconds)
            clocks = ", ".join(f"{value:.0f}" for value in figure["megahertz"].values())
            cells = [each["name"], name, *(f"{v:.{0 if v >= 100 else 1}f}" for v in values), clocks or "not read"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(cases: Sequence[Case]) -> str:
    """The acceptance shapes as Markdown: time, target, and the floor that no kernel on this GPU can be below."""
    lines = ["| case | us | target us | floor us | |", "|---|--:|--:|--:|---|"]
    for each in cases:
        seconds, target, floor = each["figures"][OURS]["seconds"], each["target_seconds"], each["floor_seconds"]
        word = "below the floor" if target < floor else "met" if seconds <= target else "missed"
        lines.append(f"| {each['name']} | {1e6 * seconds:.1f} | {1e6 * target:.1f} | {1e6 * floor:.1f} | {word} |")
    return "\n".join(lines)
