"""SM cycles of forward calls with true lengths of 1, S / 2 and S: `python benchmarks/cycles.py`.

The timing test of `python -m dhp_jax.validate` (dhp_jax/validate/timing.py), at sizes that users have: random lengths
beside the same ones again (A/A), beside each other length, and beside themselves with 64 cycles more. The table has
means with their 95 % intervals, in cycles of one call; they must lie within the bound. The exit status is 1 where a
length was seen to make a difference, and 3 where nothing did but the bound was not reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import provenance

from dhp_jax.validate import _controls, gpu, timing, verdict
from dhp_jax.validate.calls import Call
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.statistics import Difference

LENGTHS = ("one key", "half the keys", "all keys")
_LONG = 2048  # queries from which on a call takes so long that a fifth of the runs is enough, each with a rest after it
_REST = 4_000_000  # ns: such calls bring a GPU to its limit of power, where one pays for those before


def _call(b: int, t: int, s: int, n: int, k: int, channels: int, **options: Any) -> Call:
    sizes = {"B": b, "T": t, "S": s, "N": n, "K": k}
    return Call("bfloat16", channels, lengths=True, has_gradients=False, **sizes, **options)


CALLS = (
    _call(1, 512, 512, 8, 8, 64),
    _call(1, 512, 512, 8, 8, 64, is_causal=True),
    _call(1, 512, 512, 8, 8, 128),
    _call(1, 1024, 1024, 16, 16, 64),
    _call(1, 2048, 2048, 32, 32, 64),
    _call(1, 1, 4096, 32, 8, 128),
    _call(1, 1, 32768, 32, 8, 128),
    *(_call(1, _LONG, _LONG, 1024 // d, 1024 // d, d, is_causal=c) for d in (64, 128, 256) for c in (False, True)),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What was seen of one call: by lengths, and with 64 cycles more."""

    name: str
    seen: timing.Examined
    delayed: Difference

    @property
    def status(self) -> Status:
        """UNKNOWN where the machine was too restless, or 64 cycles were not seen where they are the bound."""
        problem = self.seen.problem()
        blind = self.seen.delta <= timing.DELAY and not abs(self.delayed.t) > timing.CERTAIN
        return problem[0] if problem else Status.UNKNOWN if blind else Status.PASS


def name_of(call: Call) -> str:
    """Such as "B=1 T=512 S=512 N=8 K=8 D=64 causal"."""
    sizes = " ".join(f"{axis}={getattr(call, axis)}" for axis in "BTSNK")
    return f"{sizes} D={call.channels} {'causal' if call.is_causal else 'full'}"


def measure(call: Call, runs: int) -> Row:
    """Times a call with each length."""
    pace = timing.Pace(runs // 5, 4, _REST) if call.T >= _LONG else timing.Pace(runs, 32)
    seen = timing.examine(functools.partial(timing.measured, call, _controls.FORWARD, pace, secrets=LENGTHS))
    return Row(name_of(call), seen, timing.delayed(call, pace))


def table(rows: list[Row]) -> str:
    """In Markdown."""
    head = ["call", "cycles", "again", *LENGTHS, "64 more", "bound", "said"]
    lines = [head, ["---", *["--:"] * (len(head) - 2), "---"]]
    for row in rows:
        differences = [row.seen.again, *(row.seen.differences[name] for name in LENGTHS)]
        told = [row.name, f"{row.seen.cycles:.0f}", *map(_interval, differences)]
        lines.append(
            [*told, f"{row.delayed.mean:+.0f} (t {row.delayed.t:.0f})", f"{row.seen.delta:.0f}", row.status.name]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(found: Difference) -> str:
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def run(look: Callable[[Call, int], Row], runs: int, keep: Callable[[Mapping[str, Any]], None]) -> int:
    """Times all calls, keeps the figures after each, prints the table; returns the exit status."""
    rows: list[Row] = []
    for call in CALLS:
        rows.append(look(call, runs))
        print(f"{rows[-1].name}: {rows[-1].status.name}", flush=True)
        keep({"provenance": provenance.versions(), "rows": [dataclasses.asdict(row) for row in rows]})
    print(table(rows))
    checks = [Check(row.name, row.status, "") for row in rows]
    return verdict.judge(checks, [row.name for row in rows]).status


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2500, help="runs of each class; long calls have a fifth of them")
    parser.add_argument("--output", type=pathlib.Path, help="file for the figures as JSON, written after each call")
    options = parser.parse_args(arguments)
    if reason := gpu.objection() or _controls.objection():
        parser.error(f"cycles cannot be read: {reason}")

    def keep(told: Mapping[str, Any]) -> None:
        if options.output:
            options.output.write_text(json.dumps(told, indent=1), "utf-8")

    return run(measure, options.runs, keep)


if __name__ == "__main__":
    sys.exit(main())
