"""Runs the parts, each loop in a child process: a child that crashes or hangs fails the part it was at, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from dhp_jax.validate import plan
from dhp_jax.validate.child import python
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Part
from dhp_jax.validate.store import Store

Progress = Callable[[str], None]

_MOST = 0.6  # of a loop's time: a part that had as much and did not end hangs, or is far too slow


def run(
    parts: Sequence[Part],
    store: Store,
    *,
    quick: bool,
    seconds: float = plan.SECONDS,
    progress: Progress | None = None,
    command: Sequence[str] = ("-m", "dhp_jax.validate._loop"),
) -> None:
    """Runs all parts that the store does not have, loop by loop.

    Args:
        parts: in order.
        store: where each is kept.
        quick: whether to do less.
        seconds: that all children of one loop may take together.
        progress: told the name of each loop.
        command: of a child, after the interpreter.
    """
    for loop in sorted({part.loop for part in parts}):
        if progress:
            progress(f"loop {loop}: {plan.LOOPS[loop]}")
        deadline = time.monotonic() + seconds
        while todo := [part for part in parts if part.loop == loop and store.find(part.name) is None]:
            if not _run_child(todo, store, quick, deadline - time.monotonic(), seconds, command):
                break


def _run_child(
    todo: Sequence[Part], store: Store, quick: bool, left: float, seconds: float, command: Sequence[str]
) -> bool:
    """One child for all that is left of a loop; whether there is time for another.

    A part that its process died of fails, and so does one that had most of the loop's time for itself and did not end.
    One that began late has not run: --resume gives it another chance.
    """
    options = ["--out", str(store.folder), "--identity", store.identity, *(["--quick"] if quick else [])]
    start = time.monotonic()
    # A pipe that only this process holds open: however it goes, the child sees the end of it and goes too.
    ends, alive = os.pipe()
    child = subprocess.Popen(
        [*python(), *command, *options, "--parent", str(ends), "--", *(part.name for part in todo)],
        pass_fds=(ends,),
        start_new_session=True,
    )
    os.close(ends)
    try:
        status = child.wait(timeout=max(left, 0.0))
    except subprocess.TimeoutExpired:
        at = store.begun()
        had = time.time() - store.begun_at()
        if at is not None and had > _MOST * seconds:
            _fail(store, todo, at, f"it was not done in {had:.0f} s, and was ended", had)
        return False
    finally:
        _end(child)
        os.close(alive)
    missing = [part for part in todo if store.find(part.name) is None]
    if missing:
        told = f"ended with status {status}" if status >= 0 else f"died of {signal.Signals(-status).name}"
        _fail(store, missing, store.begun(), f"its process {told}", time.monotonic() - start)
    return True


def _fail(store: Store, missing: Sequence[Part], name: str | None, told: str, seconds: float) -> None:
    """Keeps, for the part with this name or else the first, that it failed."""
    part = next((part for part in missing if part.name == name), missing[0])
    names = part.promises or (part.name,)
    store.keep(part.name, [Check(each, Status.FAIL, told, is_control=part.is_control) for each in names], seconds)


def stop(number: int, frame: object) -> None:
    """For SIGTERM: ends this process as an exception does, so that its child is ended too, and leaves the GPU."""
    sys.exit(128 + number)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and what it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
