"""Attention on one GPU beside every peer that is there, in one process: `python benchmarks/attention.py`.

    --groups grid,decode   only these groups of shapes.py
    --only REGEX           only the shapes in whose name it is found
    --peers REGEX          only these peers
    --cold                 with nothing of the arrays in the L2 cache
    --quick                three shapes
    --sustained            three runs of 60 rounds or more, each after a rest, with SM clocks; the middle run counts
    --budget SECONDS       begins no shape after so long
    --output FILE          where the results go, as JSON; it is written after each shape

timer.py says how time is taken. The table has medians over rounds in TFLOP/s (us for latency and decode), half the
distance between the quartiles in per cent, and how many times faster ours is. A peer that could not be run is marked
untested. On a CPU use benchmarks/cpu.py.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import clock
import jax
import provenance
import results
import shapes
import timer
from absl import app, flags
from peers import OURS, PEERS
from shapes import Shape

_GROUPS = flags.DEFINE_list("groups", list(shapes.GROUPS), "Groups of shapes.py.")
_ONLY = flags.DEFINE_string("only", "", "Regular expression for names of shapes.")
_PEERS = flags.DEFINE_string("peers", "", "Regular expression for names of peers.")
_COLD = flags.DEFINE_bool("cold", False, "Nothing of the arrays in the L2 cache.")
_QUICK = flags.DEFINE_bool("quick", False, "Three shapes and few rounds.")
_ROUNDS = flags.DEFINE_integer("rounds", 11, "Rounds of each shape, at least.", 3)
_SUSTAINED = flags.DEFINE_bool("sustained", False, "Three runs of 60 rounds or more, each after a second of rest.")
_BUDGET = flags.DEFINE_float("budget", float("inf"), "Begin no shape after so many seconds.")
_COMMIT = flags.DEFINE_string("commit", None, "Commit that was built, where this folder is no working tree of it.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")

_IN_MICROSECONDS = ("acceptance", "latency", "decode")


def chosen(groups: Sequence[str], only: str, quick: bool) -> list[Shape]:
    """The shapes of a run."""
    if unknown := set(groups) - set(shapes.GROUPS):
        raise ValueError(f"--groups has {sorted(unknown)}; there are {', '.join(shapes.GROUPS)}.")
    if quick:
        return [shapes.SHAPES[name] for name in shapes.QUICK]
    return [shape for shape in shapes.SHAPES.values() if shape.group in groups and re.search(only, shape.name)]


def measure(shape: Shape, peers: Mapping[str, Any], rounds: int, cold: bool, **protocol: Any) -> dict[str, Any] | None:
    """One case of a results file, None where ours could not be timed for unrest; `protocol` goes to timer.compare."""
    programs, refusals = {}, {}
    for name, adapter in peers.items():
        try:
            programs[name] = adapter(shape)
        except Exception as refusal:  # a peer says in any way that it will not
            refusals[name] = f"{type(refusal).__name__}: {refusal}"
    calls, rounds = timer.chain_length(shape.operations), timer.count_rounds(rounds, shape.operations)
    runs, more = timer.compare(programs, calls, rounds, cold=cold, **protocol)
    if more.get(OURS) == timer.RESTLESS:
        return None
    if OURS in (refusals | more):
        raise RuntimeError(f"dhp_jax did not run {shape.name}: {(refusals | more)[OURS]}")
    figures = [{name: dataclasses.asdict(timing) for name, timing in run.items()} for run in runs]
    target = None if shape.target_us is None else 1e-6 * shape.target_us
    told = {"shape": dataclasses.asdict(shape), "refusals": refusals | more, "cold": cold}
    told |= {"target_seconds": target, "floor_seconds": shape.floor_seconds}
    return results.case(shape.name, shape.group, shape.operations, figures, **told)


def untested(cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The peers that ran no shape, and why they did not run the first."""
    ran = {name for case in cases for name in case["figures"]}
    return {name: case["refusals"][name] for case in cases[:1] for name in case["refusals"] if name not in ran}


def page(told: Mapping[str, Any]) -> str:
    """All tables of a results file."""
    cases = told["cases"]
    parts = [", ".join(f"{key} {value}" for key, value in told["provenance"].items() if not isinstance(value, dict))]
    for group in dict.fromkeys(case["group"] for case in cases):
        its = [case for case in cases if case["group"] == group]
        unit = "us" if group in _IN_MICROSECONDS else "TFLOP/s"
        parts += [f"## {group}", results.table(its, unit)]
        if its[0]["runs"] > 1:
            parts.append(results.phases(its, unit))
        if any(case.get("target_seconds") for case in its):
            parts.append(results.targets([case for case in its if case.get("target_seconds")]))
    parts += [f"untested: {name}: {why}" for name, why in told["untested"].items()]
    return "\n\n".join(parts)


def main(argv: list[str]) -> None:
    """Measures, writes the results after each shape, and prints the tables."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants memory too
    if jax.default_backend() != "gpu":
        raise app.UsageError("JAX sees no GPU; benchmarks/cpu.py is for the CPU")
    peers = {name: adapter for name, adapter in PEERS.items() if name == OURS or re.search(_PEERS.value, name)}
    rounds = 60 if _SUSTAINED.value else 5 if _QUICK.value else _ROUNDS.value
    protocol = {"runs": 3, "rest": 1.0, "clock": clock.reader()} if _SUSTAINED.value else {}
    begun = time.monotonic()
    told: dict[str, Any] = {"version": results.VERSION, "provenance": {}, "untested": {}, "cases": []}
    with provenance.recorded() as told["provenance"]:
        if _COMMIT.value:
            told["provenance"]["commit"] = _COMMIT.value
        for shape in chosen(_GROUPS.value, _ONLY.value, _QUICK.value):
            if time.monotonic() - begun > _BUDGET.value:
                print(f"not begun, for want of time: {shape.name}")
                continue
            found = measure(shape, peers, rounds, _COLD.value, **protocol)
            if found is None:
                print(f"not timed, {timer.RESTLESS}: {shape.name}")
                continue
            told["cases"].append(found)
            print(results.table([found], "us"), flush=True)
            told["untested"] = untested(told["cases"])
            if _OUTPUT.value:
                results.save(pathlib.Path(_OUTPUT.value), told)
    if _OUTPUT.value:
        results.save(pathlib.Path(_OUTPUT.value), told)
    print(page(told))


if __name__ == "__main__":
    app.run(main)
