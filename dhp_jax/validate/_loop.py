"""The child process of one loop: runs its parts that are not kept yet. `python -m dhp_jax.validate._loop`."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence

from dhp_jax.validate import plan
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Context, Part
from dhp_jax.validate.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts named on the command line, each kept as it ends."""
    parser = argparse.ArgumentParser("python -m dhp_jax.validate._loop", description=__doc__)
    parser.add_argument("parts", nargs="+", help="names of parts, see plan.py")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="results folder")
    parser.add_argument("--identity", required=True, help="what results count for, see store.py")
    parser.add_argument("--quick", action="store_true", help="do less")
    parser.add_argument("--parent", type=int, help="descriptor of a pipe that ends when the parent is gone")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        threading.Thread(target=_end_with_parent, args=(options.parent,), daemon=True).start()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    store = Store(options.out, options.identity)
    known = {part.name: part for part in plan.PARTS}
    for name in _with_bar(options.parts):
        store.begin(name)
        start = time.perf_counter()
        checks = _run(known[name], Context(options.out, options.quick))
        store.keep(name, checks, time.perf_counter() - start)
        for check in checks:
            print(f"  {check.status.value:8}{check.name}: {check.detail}", flush=True)
    return 0


def _end_with_parent(pipe: int) -> None:
    """Ends this process and what it started once the parent is gone: beside the next run it would spoil its figures."""
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


def _with_bar(names: Sequence[str]) -> Iterable[str]:
    """The names, behind a progress bar on a terminal: tqdm's, where it is installed."""
    if not sys.stderr.isatty():
        return names
    try:
        bar: Iterable[str] = importlib.import_module("tqdm").tqdm(names, unit="part", leave=False)
    except ImportError:
        return names
    return bar


def _run(part: Part, context: Context) -> list[Check]:
    """What a part says; a part that raises fails."""
    names = part.promises or (part.name,)
    try:
        if part.needs_gpu:
            from dhp_jax.validate import gpu

            if reason := gpu.objection():
                told = f"needs a GPU that our kernels run on: {reason}"
                return [Check(name, Status.SKIPPED, told, is_control=part.is_control) for name in names]
        checks = list(part.function()(context))
    except Exception as problem:
        traceback.print_exc()
        said = f"{type(problem).__name__}: {problem}"
        return [Check(name, Status.FAIL, f"it ended with {said}", is_control=part.is_control) for name in names]
    if absent := set(names) - {check.name for check in checks}:
        told = f"it said nothing of {', '.join(sorted(absent))}"
        checks.append(Check(part.name, Status.FAIL, told, is_control=part.is_control))
    return checks


if __name__ == "__main__":
    sys.exit(main())
