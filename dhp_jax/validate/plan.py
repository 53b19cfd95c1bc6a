"""The loops and their parts, in order, and the checks without which nothing is cleared.

A part is a function of a Context in a module of this package, named "module:function" so that making the plan imports
neither JAX nor the part.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Sequence

from dhp_jax.validate.outcome import Check


@dataclasses.dataclass(frozen=True)
class Context:
    """What a part is told.

    Attributes:
        folder: for files of its own.
        quick: whether to do less; a quick run clears nothing.
    """

    folder: pathlib.Path
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """One piece of a loop that runs, and is kept, as a whole.

    Attributes:
        loop: its number.
        name: unique.
        place: "module:function" in dhp_jax.validate; the function takes a Context and returns its checks.
        promises: names of mandatory checks that come from it.
        needs_gpu: whether it is SKIPPED where our CUDA kernels cannot run.
        in_quick: whether a quick run has it.
        is_control: whether all it does is to show that gates catch their controls; --self-test runs these parts.
    """

    loop: int
    name: str
    place: str
    promises: tuple[str, ...] = ()
    needs_gpu: bool = False
    in_quick: bool = True
    is_control: bool = False

    def function(self) -> Callable[[Context], Sequence[Check]]:
        """Imports the part."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"{__package__}.{module}"), name)


LOOPS = {1: "Analyze", 2: "Build", 3: "Validate", 4: "Benchmark", 5: "Optimize", 6: "Harden", 7: "Report"}
SECONDS = 480  # that a loop may take; a child that takes longer is ended, and its part fails

_SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")

PARTS = (
    Part(1, "machine", "analyze:machine_facts", ("machine",)),
    Part(1, "software", "analyze:software", ("software",)),
    Part(2, "hashes", "build:hashes", ("hashes",)),
    Part(2, "resources", "build:resources", ("resources",), in_quick=False),
    Part(3, "conformance cpu", "conformance:on_cpu", ("conformance cpu",)),
    Part(3, "conformance cuda", "conformance:on_gpu", ("conformance cuda",), needs_gpu=True),
    Part(4, "benchmark", "benchmark:run"),
    Part(5, "roofline", "roofline:run", needs_gpu=True, in_quick=False),
    Part(6, "gate 2 control", "proof:controls", ("gate 2 control",), is_control=True),
    Part(6, "gate 2", "proof:kernels", ("gate 2",), in_quick=False),
    Part(6, "gate 3 control", "repeat:controls", ("gate 3 control",), needs_gpu=True, is_control=True),
    Part(6, "gate 3 cpu", "repeat:on_cpu", ("gate 3 cpu",)),
    Part(6, "gate 3 cuda", "repeat:on_gpu", ("gate 3 cuda",), needs_gpu=True),
    Part(6, "timing control", "timing:controls", ("timing control",), needs_gpu=True, is_control=True),
    Part(6, "timing", "timing:run", ("timing",), needs_gpu=True),
    Part(6, "wall clock", "timing:wall_clock", needs_gpu=True),
    Part(6, "memory", "memory:run", ("memory",)),
    Part(6, "sanitizers", "sanitize:run", _SANITIZERS, needs_gpu=True, in_quick=False),
    Part(6, "gate 1 control", "counters:controls", ("gate 1 control",), needs_gpu=True, is_control=True),
    Part(6, "gate 1 executions", "counters:executions", ("gate 1 executions",), needs_gpu=True, in_quick=False),
    Part(6, "gate 1 counters", "counters:hardware", ("gate 1 counters",), needs_gpu=True, in_quick=False),
)


def chosen(loop: int | None = None, *, quick: bool = False, self_test: bool = False) -> list[Part]:
    """The parts of a run, in order."""
    return [
        part
        for part in PARTS
        if (loop is None or part.loop == loop) and (part.in_quick or not quick) and (part.is_control or not self_test)
    ]


def mandatory() -> tuple[str, ...]:
    """Names of all checks that must be there, and PASS, for a clearance."""
    return tuple(name for part in PARTS for name in part.promises)
