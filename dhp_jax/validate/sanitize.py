"""Loop 6: the four tools of compute-sanitizer on a reduced suite in which every kernel runs.

initcheck leaves out one report that is known to be wrong: initcheck.xml says which, and why.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

from dhp_jax.validate.child import python
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Context

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SUPPRESSIONS = {"initcheck": pathlib.Path(__file__).with_name("initcheck.xml")}
_PLACES = ("/usr/local/cuda/bin/compute-sanitizer",)
_SECONDS = 330
_FOUND = 86  # exit status of a tool that found something
_BEGUN = "the suite begins"
_DONE = "all finite"


def run(context: Context) -> list[Check]:
    """All tools at once: most of their time goes into compiling."""
    tool = next(
        (place for place in (shutil.which("compute-sanitizer"), *_PLACES) if place and pathlib.Path(place).exists()),
        None,
    )
    if tool is None:
        return [Check(name, Status.SKIPPED, "compute-sanitizer is not on the PATH") for name in TOOLS]
    folder = context.folder / "sanitizers"
    folder.mkdir(parents=True, exist_ok=True)
    said = _run(tool, TOOLS, folder)
    # A tool that dies of a signal, or before the suite has begun, has said nothing of the kernels: once more, alone.
    for name, (status, text) in said.items():
        if _BEGUN not in text or (status is not None and status < 0):
            said[name] = _run(tool, (name,), folder)[name]
    return [judge(name, status, text) for name, (status, text) in said.items()]


def _run(tool: str, names: tuple[str, ...], folder: pathlib.Path) -> dict[str, tuple[int | None, str]]:
    """By tool: the exit status, None where it did not end in time; and what was said."""
    child = [*python(), "-m", "dhp_jax.validate._one", "--suite"]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    running = {}
    for name in names:
        suppressed = ["--suppressions", str(SUPPRESSIONS[name])] if name in SUPPRESSIONS else []
        read = "but-outputs" if name == "initcheck" else "all"
        command = [tool, "--tool", name, "--error-exitcode", str(_FOUND), *suppressed, *child, read]
        with (folder / f"{name}.txt").open("wb") as log:
            running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    said: dict[str, tuple[int | None, str]] = {}
    for name, process in running.items():
        try:
            status: int | None = process.wait(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        said[name] = status, (folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
    return said


def judge(name: str, status: int | None, text: str) -> Check:
    """A pass needs a clean exit, the suite's last word, and the tool's own summary."""
    last = text.strip().splitlines()[-1][-200:] if text.strip() else "it said nothing"
    if status is None:
        return Check(name, Status.UNKNOWN, f"it did not end within {_SECONDS} s")
    if status == _FOUND:
        return Check(name, Status.FAIL, f"errors: {last}")
    if status != 0:
        return Check(name, Status.UNKNOWN, f"it ended with status {status}: {last}")
    if _DONE not in text or ("ERROR SUMMARY: 0 errors" not in text and "0 hazards" not in text):
        return Check(name, Status.UNKNOWN, f"it does not say that the suite ran without errors: {last}")
    return Check(name, Status.PASS, "0 errors")
