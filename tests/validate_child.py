"""A child of the runner with parts of its own: `python validate_child.py`, as `-m dhp_jax.validate._loop` else."""

import os
import pathlib
import signal
import sys
import time

from dhp_jax.validate import _loop, plan
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Part


def good(context):
    return [Check("good", Status.PASS, "it is well", {"n": 1})]


def crashes(context):
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(context):
    os._exit(7)


def hangs(context):
    time.sleep(600)


def waits(context):
    """Until a file lets it go on."""
    unfinished = context.folder / f"process.{os.getpid()}"
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(context.folder / "process")
    while not (context.folder / "go on").exists():
        time.sleep(0.02)
    return [Check("waits", Status.PASS, "it went on")]


def raises(context):
    raise RuntimeError("no such thing")


def silent(context):
    return []


_FUNCTIONS = (good, crashes, leaves, hangs, waits, raises, silent)
PARTS = {function.__name__: Part(6, function.__name__, "", (function.__name__,)) for function in _FUNCTIONS}


def logged(part):
    """The function of a part, which notes in the folder that it ran."""
    (function,) = (function for function in _FUNCTIONS if function.__name__ == part.name)

    def run(context):
        with pathlib.Path(context.folder, "log").open("a") as log:
            log.write(part.name + "\n")
        return function(context)

    return run


if __name__ == "__main__":
    plan.PARTS = tuple(PARTS.values())
    Part.function = logged
    sys.exit(_loop.main())
