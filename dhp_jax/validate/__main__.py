"""`python -m dhp_jax.validate`: is this installation correct, constant-time, repeatable, and how fast?

Seven loops: 1 analyze, 2 build, 3 validate, 4 benchmark, 5 optimize, 6 harden, 7 report. Exit status 0: cleared.
1: a check failed, or a gate did not catch its control. 2: the command line is wrong. 3: nothing failed, but mandatory
checks did not run or said UNKNOWN, as always on a CPU and with --quick.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

from absl import app, flags

from dhp_jax.validate import plan, report, runner, store, verdict

_OUT = flags.DEFINE_string("out", "out/validate", "Results folder.")
_QUICK = flags.DEFINE_bool("quick", False, "Do less, in under 2 minutes; it clears nothing.")
_LOOP = flags.DEFINE_integer("loop", None, "Run this loop only, and report on all that the folder has.", 1, 7)
_RESUME = flags.DEFINE_bool("resume", False, "Keep what an earlier run in the folder has done.")
_SELF_TEST = flags.DEFINE_bool("self_test", False, "Run the controls alone: does each gate catch its own?")


def main(argv: list[str]) -> int:
    """Runs the loops, writes the report, and returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; everything is an option, see --help.")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    folder = pathlib.Path(_OUT.value).resolve()
    quick, alone = _QUICK.value, _SELF_TEST.value
    kept = store.Store(folder / "self_test" if alone else folder, store.identity(quick))
    if not _RESUME.value and _LOOP.value is None:
        kept.clear()
    parts = plan.chosen(_LOOP.value, quick=quick, self_test=alone)
    if _LOOP.value is not None and not _RESUME.value:
        kept.forget(part.name for part in parts)
    signal.signal(signal.SIGTERM, runner.stop)
    runner.run(parts, kept, quick=quick, progress=lambda name: print(name, flush=True))
    checks = [check for part in plan.PARTS for check in kept.find(part.name) or ()]
    if alone:
        ended = verdict.judge_self_test(checks)
    else:
        ended = verdict.judge(checks, plan.mandatory(), quick)
        if _LOOP.value in (None, 7):
            print(f"loop 7: {plan.LOOPS[7]}")
        written = report.write(kept, ended, quick)
        print("\n".join(f"  {path}" for path in written))
    print("\n".join(f"- {line}" for line in ended.missing))
    print(ended.line)
    return int(ended.status)


def _parsed(argv: list[str]) -> list[str]:
    """Absl writes names of flags with underscores; hyphens are as good."""
    return flags.FLAGS(
        [argv[0], *("--" + word[2:].replace("-", "_") if word.startswith("--self-") else word for word in argv[1:])]
    )


def _flags(argv: list[str]) -> list[str]:
    try:
        return _parsed(argv)
    except flags.Error as problem:
        print(f"dhp_jax.validate: {problem}. See python -m dhp_jax.validate --help.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=_flags)
