"""Loop 6, gate 1: hardware counters of every kernel are the same whatever the secrets.

A test, where gate 2 is the proof: it sees what ran. Each call runs under Nsight Compute with every sort of secrets,
some at once, each in heads or batch elements of its own, and with random ones several times (A/A). It looks twice.
EXECUTIONS are counted by instructions that Nsight Compute adds to a kernel, in as many processes as there are cores:
how often each instruction ran, by warps and by threads, and what each that uses memory asked of it. Counters of the
HARDWARE it reads of one launch at a time. What may be concluded, of both alike:

* one that differs between equal inputs, is absent, is no number, or is zero in all kernels: UNKNOWN. None is demoted;
* one that differs between secrets: FAIL.

Executions in waiting loops, which repeat as the hardware pleases, are not compared. Counters of the hardware that count
those too are not read: totals of all instructions, and the pipe of shared memory. Nor are those that leave out what a
predicate switches off (`_pred_on`), which may differ in constant-time code, nor more than one replay of a launch
brings: requests of memory are left to the instructions that ask for them.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from dhp_jax.validate import _controls, gpu, ncu, proof
from dhp_jax.validate.calls import Call, every_call, to_text
from dhp_jax.validate.ncu import PER_ACCESS, PER_PC, CountersError, Launch, NoCountersError
from dhp_jax.validate.outcome import Check, Status, control
from dhp_jax.validate.plan import Context
from dhp_jax.validate.waiting import waiting_loops

# Name of a group -> patterns of metrics; the first pattern that the GPU has any metric of counts.
HARDWARE: Mapping[str, tuple[str, ...]] = {
    "tensor": (r"sm__inst_executed_pipe_tensor", r"sm(sp)?__inst_executed_pipe_tensor_op_[gh]mma"),
    "transcendental": (r"sm__inst_executed_pipe_xu", r"smsp__inst_executed_pipe_xu"),
    "LSU sectors": (r"l1tex__t_sectors_pipe_lsu_mem_global_op_(ld|st)",),
}
_KERNELS = "^attention_"
_EQUAL = 2  # runs with equal inputs before the other secrets; one more comes last
_AT_ONCE = 8  # processes, of which one measures while others start and compile
_CALLS = 6  # of one process: a first launch under ncu takes a second longer than others
_CALLS_AMONG_MANY = 2  # of one process where all measure at once


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What is read.

    Attributes:
        groups: group -> metrics, with suffixes.
        single: whether the executions of single instructions are read too.
    """

    groups: Mapping[str, tuple[str, ...]]
    single: bool = False

    def all(self) -> list[str]:
        """Names to ask for, each once."""
        grouped = [name for names in self.groups.values() for name in names]
        return list(dict.fromkeys([*grouped, *(PER_PC if self.single else ())]))

    @property
    def of_hardware(self) -> bool:
        """Whether any is a counter of the hardware: those have a unit in front."""
        return any("__" in name for name in self.all())


EXECUTIONS = Metrics({group: (name,) for group, name in PER_ACCESS.items()}, single=True)


def metrics(known: Iterable[str]) -> Metrics:
    """What is read of the hardware, on a GPU that has the metrics `known`, named without suffix."""
    names = sorted(known)

    def matching(pattern: str) -> tuple[str, ...]:
        return tuple(f"{name}.sum" for name in names if re.fullmatch(pattern, name))

    return Metrics(
        {
            group: next((found for pattern in patterns if (found := matching(pattern))), ())
            for group, patterns in HARDWARE.items()
        }
    )


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one counter of one kernel said: FAIL or UNKNOWN, and why."""

    status: Status
    kernel: str
    text: str


@dataclasses.dataclass(frozen=True)
class Judged:
    """What the launches of one call said.

    Attributes:
        kernels: that were looked at.
        findings: what is no pass.
        counted: largest total of each metric.
    """

    kernels: frozenset[str]
    findings: tuple[Finding, ...]
    counted: Mapping[str, float]


def judge(
    launches: Sequence[Launch],
    secrets: Sequence[str],
    read: Metrics,
    waiting: Mapping[str, frozenset[int]] | None = None,
) -> Judged:
    """Compares the launches of a program that ran one call with each of `secrets`, in this order.

    Args:
        launches: in order; a kernel may run several times in a call.
        secrets: the name of what each run had. The first occurs more than once: its runs have equal inputs.
        read: the metrics.
        waiting: kernel -> addresses of the instructions of its waiting loops, which repeat as the hardware pleases.
    """
    by_kernel: dict[str, list[Launch]] = collections.defaultdict(list)
    for launch in launches:
        by_kernel[launch.kernel].append(launch)
    findings: list[Finding] = []
    counted: dict[str, float] = {}
    if secrets.count(secrets[0]) < 2 or len(set(secrets)) < 2:
        raise ValueError("dhp_jax.validate: a judgement needs two runs with equal inputs and one with others.")
    for kernel, its in by_kernel.items():
        if len(its) % len(secrets):
            text = f"{len(its)} launches are no multiple of the {len(secrets)} runs"
            findings.append(Finding(Status.UNKNOWN, kernel, text))
            continue
        times = len(its) // len(secrets)
        for position in range(times):
            comparison = _Comparison(kernel, its[position::times], secrets, findings)
            comparison.totals(read, counted)
            if read.single:
                comparison.instructions((waiting or {}).get(kernel, frozenset()))
    return Judged(frozenset(by_kernel), tuple(findings), counted)


class _Comparison:
    """The launches of one kernel at one place in the call, one for each run."""

    def __init__(self, kernel: str, launches: list[Launch], secrets: Sequence[str], findings: list[Finding]):
        self._kernel = kernel
        self._launches = launches
        self._secrets = secrets
        self._findings = findings

    def totals(self, read: Metrics, counted: dict[str, float]) -> None:
        """Of each metric of a group, with what each instruction has of it where that was counted."""
        for name in (name for names in read.groups.values() for name in names):
            totals = [launch.metrics.get(name, math.nan) for launch in self._launches]
            if any(map(math.isnan, totals)):
                self._unknown(f"{name} is missing, or no number")
                continue
            counted[name] = max(counted.get(name, 0.0), *totals)
            of_instructions = [tuple(launch.instances.get(name, {}).items()) for launch in self._launches]
            values = list(zip(totals, of_instructions, strict=True))
            if self._noisy(values):
                self._unknown(f"{name} differs between equal inputs, and may not be left out")
            else:
                self._compare(name, values)

    def instructions(self, waiting: frozenset[int]) -> None:
        """How often each instruction ran, in warps and in threads, but those of waiting loops."""
        for metric, unit in PER_PC.items():
            name = f"executions of single instructions by {unit}"
            values = [
                tuple(sorted((pc, n) for pc, n in launch.instances.get(metric, {}).items() if pc not in waiting))
                for launch in self._launches
            ]
            if not all(any(count for _, count in value) for value in values):
                self._unknown(f"no {name} were read")
            elif self._noisy(values):
                self._unknown(f"the {name} differ between equal inputs")
            else:
                self._compare(name, values)

    def _noisy(self, values: Sequence[object]) -> bool:
        equal = [value for value, secret in zip(values, self._secrets, strict=True) if secret == self._secrets[0]]
        return len(set(equal)) > 1

    def _compare(self, name: str, values: Sequence[object]) -> None:
        differ = [secret for value, secret in zip(values, self._secrets, strict=True) if value != values[0]]
        if differ:
            self._findings.append(Finding(Status.FAIL, self._kernel, f"{name} differs for {', '.join(differ)}"))

    def _unknown(self, text: str) -> None:
        self._findings.append(Finding(Status.UNKNOWN, self._kernel, text))


def conclude(name: str, judged: Sequence[Judged], read: Metrics, expected: Iterable[str]) -> Check:
    """One check from what all calls said; `expected` are the kernels that must have run."""
    kernels = frozenset().union(*(each.kernels for each in judged))
    findings = [finding for each in judged for finding in each.findings]
    unknown = [f"{finding.kernel}: {finding.text}" for finding in findings if finding.status is Status.UNKNOWN]
    failed = [f"{finding.kernel}: {finding.text}" for finding in findings if finding.status is Status.FAIL]
    unknown += [f"{kernel}: it never ran" for kernel in sorted(set(expected) - kernels)]
    for group, names in read.groups.items():
        if not any(each.counted.get(metric, 0.0) for each in judged for metric in names):
            unknown.append(
                f"no kernel counted anything for {group} ({', '.join(names) or 'no such metric on this GPU'})"
            )
    if not kernels:
        unknown.append("no kernel was profiled")
    figures = {"kernels": sorted(kernels), "metrics": read.all(), "failed": failed, "unknown": unknown}
    if failed:
        return Check(name, Status.FAIL, f"counters depend on secrets: {'; '.join(failed[:5])}", figures)
    if unknown:
        return Check(name, Status.UNKNOWN, f"{len(unknown)} things are not known: {'; '.join(unknown[:5])}", figures)
    groups = [*read.groups, *(["executions of each instruction"] if read.single else [])]
    return Check(name, Status.PASS, f"{len(kernels)} kernels: {', '.join(groups)} agree over all secrets", figures)


def programs(every: Iterable[Call], most: int) -> list[list[Call]]:
    """Calls that one process runs, at most so many, with the same mixtures: so all have the same runs."""
    by_mixtures: dict[tuple[str, ...], list[Call]] = collections.defaultdict(list)
    for call in sorted(every, key=lambda call: (call.has_gradients, call.operands), reverse=True):
        by_mixtures[call.mixtures()].append(call)
    return [its[begin : begin + most] for its in by_mixtures.values() for begin in range(0, len(its), most)]


def _gate(name: str, read: Metrics, context: Context, at_once: int, most: int) -> list[Check]:
    def judged(numbered: tuple[int, list[Call]]) -> Judged:
        number, program = numbered
        first = program[0].secrets()[0]
        secrets = [*[first] * _EQUAL, *program[0].mixtures(), first]
        arguments = ["--calls", *map(to_text, program), "--secrets", ",".join(secrets)]
        log = _folder(context) / f"{name.replace(' ', '_')}_{number}.csv"
        launches = ncu.run(arguments, read.all(), _KERNELS, log, alone=read.of_hardware, flushed=False)
        return judge(launches, secrets, read, waiting.result())

    try:
        ncu.tool()
        with ThreadPoolExecutor(at_once + 1) as pool:
            waiting = pool.submit(waiting_loops)
            found = list(pool.map(judged, enumerate(programs(every_call(), most))))
        return [conclude(name, found, read, proof.names(gpu.architecture()))]
    except NoCountersError as reason:
        return [Check(name, Status.SKIPPED, str(reason))]
    except CountersError as problem:
        return [Check(name, Status.UNKNOWN, str(problem))]


def _folder(context: Context) -> pathlib.Path:
    folder = context.folder / "counters"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def executions(context: Context) -> list[Check]:
    """How often each instruction of every kernel ran, and what it asked of memory."""
    return _gate("gate 1 executions", EXECUTIONS, context, os.cpu_count() or 1, _CALLS_AMONG_MANY)


def hardware(context: Context) -> list[Check]:
    """Counters of the hardware, of every kernel."""
    name = "gate 1 counters"
    try:
        read = metrics(ncu.known_metrics())
    except NoCountersError as reason:
        return [Check(name, Status.SKIPPED, str(reason))]
    except CountersError as problem:
        return [Check(name, Status.UNKNOWN, str(problem))]
    return _gate(name, read, context, _AT_ONCE, _CALLS)


def controls(context: Context) -> list[Check]:
    """A kernel that stops at a secret length must fail, by the executions and by the counters of the hardware."""
    name = "gate 1 control"
    if reason := _controls.objection():
        return [Check(name, Status.SKIPPED, reason, is_control=True)]
    secrets = ["length 1024"] * _EQUAL + ["length 256", "length 1024"]
    arguments = ["--control", "leak", "--secrets", ",".join(secrets)]
    found = {}
    try:
        for kind, read in (("executions", EXECUTIONS), ("counters", metrics(ncu.known_metrics()))):
            log = _folder(context) / f"control_{kind}.csv"
            launches = ncu.run(arguments, read.all(), "^control_leak", log, alone=read.of_hardware, flushed=False)
            found[kind] = judge(launches, secrets, read)
    except NoCountersError as reason:
        return [Check(name, Status.SKIPPED, str(reason), is_control=True)]
    except CountersError as problem:
        return [Check(name, Status.UNKNOWN, str(problem), is_control=True)]
    return [judge_control(found)]


def judge_control(found: Mapping[str, Judged]) -> Check:
    """Whether each of the two ways to look saw the leak."""
    told = {
        kind: [finding.text for finding in judged.findings if finding.status is Status.FAIL]
        for kind, judged in found.items()
    }
    blind = [kind for kind, texts in told.items() if not texts]
    seen = "; ".join(text for texts in told.values() for text in texts)
    if blind:
        return control(
            "gate 1 control", False, f"a kernel that stops at a length was not seen by {' and '.join(blind)}"
        )
    return control("gate 1 control", True, f"a kernel that stops at a length was seen by: {seen}")
