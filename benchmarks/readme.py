"""Writes README's figures from the newest results in history/: `python benchmarks/readme.py`.

The text between the two marks in README.md, and the plot that it shows, are made here and never typed. `--check`
changes nothing and ends with status 1 where they are not what the results say.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import plots
import results

ROOT = results.FOLDER.parent
BEGIN, END = "<!-- made by benchmarks/readme.py -->\n", "<!-- end of what it made -->\n"
PLOT = results.FOLDER / "plots" / "throughput.svg"
_KEPT = ("jax.nn cudnn", "torch cuDNN", "torch FlashAttention-2", "FlashAttention-3", "FlashAttention-4", "jax.nn xla")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figures, or checks them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 where something is out of date")
    options = parser.parse_args(arguments)
    newest = results.history()[-1]
    told = results.load(newest)
    readme = ROOT / "README.md"
    wanted = {readme: placed(readme.read_text("utf-8"), section(told, newest)), PLOT: drawing(told)}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if options.check:
            print(f"{path} is not what {newest.name} says; run python benchmarks/readme.py", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text := wanted[path], "utf-8")
            print(f"wrote {path}, {len(text)} characters")
    return int(bool(stale) and options.check)


def placed(page: str, text: str) -> str:
    """A page with the text between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"README.md lacks the line {(BEGIN if not begin else END).strip()!r}; put it where the figures go."
        )
    return before + BEGIN + text + END + after


def section(told: Mapping[str, Any], path: pathlib.Path) -> str:
    """What README says of speed."""
    facts, cases = told["provenance"], told["cases"]
    name = path.relative_to(ROOT).as_posix()
    lines = [
        f"\n{facts.get('name', 'GPU')}, {facts['date']}, commit {facts['commit'][:9]}, from `{name}`: TFLOP/s",
        "(operations count as `benchmarks/shapes.py` says, whatever an implementation does), and how many times faster",
        "ours is.\n",
    ]
    chosen = [case for case in cases if case["group"] in ("grid", "float32")]
    lines.append(results.table([_short(case) for case in chosen], "TFLOP/s") + "\n")
    if aims := [case for case in cases if case.get("target_seconds")]:
        lines.append("Shapes that earlier designs were to reach on an H100:\n\n" + results.targets(aims) + "\n")
    lines.append(f"![throughput]({PLOT.relative_to(ROOT).as_posix()})\n")
    return "\n".join(lines) + "\n"


def _short(case: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: found for name, found in case["figures"].items() if name == results.OURS or name in _KEPT}
    return {**case, "figures": kept, "ratios": {n: ratio for n, ratio in case["ratios"].items() if n in kept}}


def drawing(told: Mapping[str, Any]) -> str:
    """The plot of README."""
    return plots.grid(told["cases"], gradient=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
