"""Loop 4: how fast, beside every peer that can be imported: runs benchmarks/attention.py of the source tree.

Speed bears no verdict on constant time, so nothing here is mandatory; an acceptance shape that misses its target is
told.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

from dhp_jax.validate import gpu
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Context

_PLACES = (pathlib.Path(__file__).parents[2], pathlib.Path.cwd())
_SECONDS = 450
_BUDGET = 300  # seconds after which no further shape is begun


def run(context: Context) -> list[Check]:
    """The grid, latency and decode shapes; on a CPU, its own cases beside XLA."""
    program = "cpu.py" if gpu.objection() else "attention.py"
    folder = next((place / "benchmarks" for place in _PLACES if (place / "benchmarks" / program).exists()), None)
    if folder is None:
        return [Check("benchmark", Status.SKIPPED, "no folder benchmarks/: run in a source tree of dhp_jax")]
    output = context.folder / "benchmark.json"
    output.unlink(missing_ok=True)
    quick = ["--quick"] if context.quick or gpu.objection() else ["--rounds=15", f"--budget={_BUDGET}"]
    command = [sys.executable, str(folder / program), f"--output={output}", *quick]
    done = subprocess.run(command, timeout=_SECONDS, check=False)
    if done.returncode or not output.exists():
        return [Check("benchmark", Status.FAIL, f"{program} ended with status {done.returncode}")]
    return [judge(json.loads(output.read_text(encoding="utf-8")))]


def judge(told: dict[str, Any]) -> Check:
    """One check from a results file, see benchmarks/results.py."""
    cases = told["cases"]
    rivals = sorted({name for case in cases for name in case["figures"]} - {"dhp_jax"})
    targets = [case for case in cases if case.get("target_seconds")]
    met = [case["name"] for case in targets if case["figures"]["dhp_jax"]["seconds"] <= case["target_seconds"]]
    text = f"{len(cases)} cases beside {', '.join(rivals) or 'no peer'}; {len(met)} of {len(targets)} targets met"
    status = Status.PASS if cases and rivals else Status.UNKNOWN
    return Check("benchmark", status, text, {**told, "targets met": met, "untested": told.get("untested", {})})
