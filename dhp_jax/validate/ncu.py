"""Runs Nsight Compute on a child process, and reads what it measured."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from dhp_jax.validate.child import python

_SECONDS = 400
_NO_PERMISSION = "ERR_NVGPUCTRPERM"
_CHILD_FAILED = "The application returned an error code"
_SIGNALS = 128  # exit statuses above it are a shell's way to tell a signal
_LONGEST_CELL = 1 << 27  # one has a value for each instruction of a kernel
# Executions of each instruction of the machine code, and in what unit. Threads count where they took part, whatever a
# predicate switched off. `ncu --query-metrics` names neither these nor the next.
PER_PC = {"inst_executed": "warps", "thread_inst_executed": "threads"}
# What each instruction that uses memory asks of it, from its addresses. Sectors are left to the hardware: of copies to
# shared memory in which some lanes copy nothing, ncu 2025.3 counts now more and now less.
PER_ACCESS = {
    "shared-memory wavefronts": "memory_l1_wavefronts_shared",
    "memory requests": "memory_l1_tag_requests_global",
}
_PC = re.compile(r"(0x[0-9a-f]+|\d+)\s*:\s*([\d,.]+)")
_PLACES = ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu")


class NoCountersError(Exception):
    """Counters cannot be read here, which is no finding: the check is SKIPPED."""


class CountersError(Exception):
    """Counters were to be read and what came makes no sense: the check is UNKNOWN."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of one kernel.

    Attributes:
        kernel: its mangled name.
        metrics: by name; NaN where ncu wrote what is no number.
        instances: of a metric that has one value for each instruction: address -> value.
    """

    kernel: str
    metrics: Mapping[str, float]
    instances: Mapping[str, Mapping[int, float]]


def tool() -> str:
    """Where ncu is; raises NoCountersError where it is not."""
    for place in (shutil.which("ncu"), *_PLACES):
        if place and pathlib.Path(place).exists():
            return str(place)
    raise NoCountersError("ncu (Nsight Compute) is not on the PATH; it comes with the CUDA toolkit")


def known_metrics() -> frozenset[str]:
    """The names, without suffix, of all metrics of the GPU here."""
    done = subprocess.run([tool(), "--query-metrics"], capture_output=True, text=True, timeout=120, check=False)
    if _NO_PERMISSION in done.stdout + done.stderr:
        raise NoCountersError(_no_permission())
    names = frozenset(re.findall(r"^(\w+__\w+)\s", done.stdout, re.MULTILINE))
    if not names:
        raise CountersError(f"ncu --query-metrics names no metric: {(done.stderr or done.stdout)[-300:]!r}")
    return names


def run(
    arguments: Sequence[str], metrics: Sequence[str], kernels: str, log: pathlib.Path, *, alone: bool, flushed: bool
) -> list[Launch]:
    """Runs `python -m dhp_jax.validate._one` under ncu; its launches, in order.

    Args:
        arguments: of the child.
        metrics: to collect, with suffixes.
        kernels: a regular expression that the base name of a kernel must match.
        log: where ncu writes what it measured; kept.
        alone: whether other processes that ncu looks at wait while it measures a launch of this one, as counters of the
            hardware need. It has a lock for that in the folder for temporary files.
        flushed: whether every replay of a launch begins with empty caches. Counts of instructions and addresses are the
            same with and without; traffic and time are not.

    Raises:
        NoCountersError: ncu is missing or has no permission.
        CountersError: ncu crashed twice, it or the child failed, or it wrote what cannot be read.
    """
    command = [tool(), "--target-processes", "all", "--clock-control", "none"]
    command += ["--cache-control", "all" if flushed else "none"]
    command += ["--replay-mode", "kernel", "-k", f"regex:{kernels}", "--metrics", ",".join(metrics), "--csv"]
    command += ["--page", "raw", "--print-metric-instances", "values", "--print-units", "base"]
    command += ["--print-kernel-base", "mangled", "--log-file", str(log)]
    command += [*python(), "-m", "dhp_jax.validate._one", *arguments]
    # Kernels in a command buffer are not told apart.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
    environment = {**os.environ, "XLA_FLAGS": flags.strip(), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with tempfile.TemporaryDirectory() as own:
        environment |= {} if alone else {"TMPDIR": own}
        status, text, said = _run(command, environment, log)
        if _has_crashed(status, said):
            status, text, said = _run(command, environment, log)
    if _NO_PERMISSION in said:
        raise NoCountersError(_no_permission())
    if status:
        raise CountersError(f"ncu ended with status {status}: {said[-400:]!r}")
    return parse(text)


def _has_crashed(status: int, said: str) -> bool:
    """Whether a signal ended ncu and not its child: where many run at once, that happens."""
    return (status < 0 or status > _SIGNALS) and _CHILD_FAILED not in said


def _run(command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path) -> tuple[int, str, str]:
    """The exit status, what is in the log, and all that was said."""
    log.unlink(missing_ok=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CountersError(f"ncu did not end within {_SECONDS} s") from None
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return done.returncode, text, text + done.stdout + done.stderr


def _no_permission() -> str:
    return f"no permission to read the GPU's counters ({_NO_PERMISSION}); an administrator must allow it in the driver"


def parse(text: str) -> list[Launch]:
    """The launches in ncu's raw page as CSV."""
    begin = text.find('"ID"')
    if begin < 0:
        return []
    csv.field_size_limit(_LONGEST_CELL)
    rows = list(csv.reader(io.StringIO(text[begin:])))
    head, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isdigit()]
    if "Kernel Name" not in head:
        raise CountersError(f"ncu wrote a table without kernel names: {head[:12]}")
    name = head.index("Kernel Name")
    by_instructions = (*PER_PC, *PER_ACCESS.values())
    columns = [index for index, title in enumerate(head) if "__" in title or title in by_instructions]
    return [
        Launch(
            row[name],
            {head[index]: _number(row[index]) for index in columns},
            {head[index]: pcs for index in columns if (pcs := _instances(row[index]))},
        )
        for row in body
    ]


def _number(cell: str) -> float:
    """The total that a cell begins with."""
    try:
        return float(cell.partition("(")[0].strip().replace(",", ""))
    except ValueError:
        return float("nan")


def _instances(cell: str) -> dict[int, float]:
    """What a cell has in brackets: address: value; .. or, without addresses, values in the order of the code."""
    _, bracket, inside = cell.partition("(")
    if not bracket:
        return {}
    pairs = _PC.findall(inside)
    if pairs:
        return {int(address, 0): float(value.replace(",", "")) for address, value in pairs}
    values = [value.strip() for value in inside.rstrip(") ").split(";")]
    try:
        return {16 * index: float(value.replace(",", "")) for index, value in enumerate(values)}
    except ValueError:
        return {}
