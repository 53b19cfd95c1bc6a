"""Results files: what attention.py and cpu.py write, and tables and plots are made from. schema.json is their form."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).parent
SCHEMA = FOLDER / "schema.json"
VERSION = 1

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
    name: str, group: str, operations: float, figures: Mapping[str, Mapping[str, float]], **more: Any
) -> dict[str, Any]:
    """One case: `figures` has seconds and spread_percent by implementation."""
    ours = figures["dhp_jax"]["seconds"]
    ratios = {peer: theirs["seconds"] / ours for peer, theirs in figures.items() if peer != "dhp_jax"}
    return {"name": name, "group": group, "operations": operations, "figures": dict(figures), "ratios": ratios, **more}


def tflops(case: Case, name: str) -> float:
    """Rate of an implementation in a case."""
    return 1e-12 * float(case["operations"]) / float(case["figures"][name]["seconds"])


def implementations(cases: Iterable[Case]) -> list[str]:
    """Names of all that any case has a time of, ours first."""
    names = dict.fromkeys(name for each in cases for name in each["figures"])
    return sorted(names, key=lambda name: name != "dhp_jax")


def table(cases: Sequence[Case], unit: str) -> str:
    """Cases as Markdown: a figure of each implementation, TFLOP/s or us, and how many times faster ours is."""
    names = implementations(cases)
    rivals = [name for name in names if name != "dhp_jax"]
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


def targets(cases: Sequence[Case]) -> str:
    """The acceptance shapes as Markdown: time, target, and the floor that no kernel on this GPU can be below."""
    lines = ["| case | us | target us | floor us | |", "|---|--:|--:|--:|---|"]
    for each in cases:
        seconds, target, floor = each["figures"]["dhp_jax"]["seconds"], each["target_seconds"], each["floor_seconds"]
        word = "below the floor" if target < floor else "met" if seconds <= target else "missed"
        lines.append(f"| {each['name']} | {1e6 * seconds:.1f} | {1e6 * target:.1f} | {1e6 * floor:.1f} | {word} |")
    return "\n".join(lines)
