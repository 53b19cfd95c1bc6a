"""Loop 6, gate 1: hardware counters of every kernel are the same whatever the secrets.

A test, where gate 2 is the proof: it sees what ran. Each call runs under Nsight Compute with every sort of secrets, a
few at once, each in heads or batch elements of its own, and with random ones several times (A/A). What may be
concluded:

* a core counter (CORE, the wavefronts of shared memory that instructions ask for, and the executions of each
  instruction but those of waiting loops) that differs between equal inputs, is absent, is no number, or is zero in all
  kernels: UNKNOWN. Core counters are never demoted;
* a core counter, or any in STEADY that agrees between equal inputs, that differs between secrets: FAIL;
* one in STEADY that differs between equal inputs says nothing, and is listed. So are all in RESTLESS, in which the
  order of the warps has a part.

Counters that leave out what a predicate switches off (`_pred_on`) may differ in constant-time code, and are not read.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

from dhp_jax.validate import _controls, gpu, ncu, proof
from dhp_jax.validate.calls import Call, calls, forward_calls, to_text
from dhp_jax.validate.ncu import PER_PC, WAVEFRONTS, CountersError, Launch, NoCountersError
from dhp_jax.validate.outcome import Check, Status, control
from dhp_jax.validate.plan import Context
from dhp_jax.verify import UnverifiableError, image
from dhp_jax.verify import cubin as cubins
from dhp_jax.verify.__main__ import installed_library, own_policies
from dhp_jax.verify.report import Branch

# Name of a group -> patterns of metrics; the first pattern that the GPU has any metric of counts.
CORE: Mapping[str, tuple[str, ...]] = {
    "tensor": (r"sm__inst_executed_pipe_tensor", r"sm(sp)?__inst_executed_pipe_tensor_op_[gh]mma"),
    "transcendental": (r"sm__inst_executed_pipe_xu", r"smsp__inst_executed_pipe_xu"),
    "LSU requests": (r"l1tex__t_requests_pipe_lsu_mem_global_op_(ld|st)",),
    "LSU sectors": (r"l1tex__t_sectors_pipe_lsu_mem_global_op_(ld|st)",),
}
# What else ran, of waiting loops too; how often each instruction did is a core counter.
STEADY = (r"smsp__inst_executed", r"smsp__thread_inst_executed", r"smsp__inst_executed_op_branch")
RESTLESS = (r"l1tex__data_pipe_lsu_wavefronts_mem_shared",)  # it counts waits; WAVEFRONTS is what was asked for
_KERNELS = "^attention_"
_EQUAL = 2  # runs with equal inputs before the other secrets; one more comes last
_AT_ONCE = 8  # processes: ncu lets one of them measure while others start and compile
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(BRA `\(\S+\) )?")  # the second: a jump that is always taken
_LABEL = re.compile(r"([^\s:/]+):\s*")
_DTYPES = ("float32", "bfloat16", "float16")  # as the names of kernels count them


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What is read.

    Attributes:
        core: group -> metrics, with suffixes.
        steady: judged where equal inputs agree.
        restless: listed.
    """

    core: Mapping[str, tuple[str, ...]]
    steady: tuple[str, ...]
    restless: tuple[str, ...]

    def all(self) -> list[str]:
        """Names to ask for, each once."""
        core = [name for names in self.core.values() for name in names]
        return list(dict.fromkeys([*core, PER_PC, *self.steady, *self.restless]))


def metrics(known: Iterable[str]) -> Metrics:
    """What is read on a GPU that has the metrics `known`, named without suffix."""
    names = sorted(known)

    def matching(pattern: str) -> tuple[str, ...]:
        return tuple(f"{name}.sum" for name in names if re.fullmatch(pattern, name))

    core = {
        group: next((found for pattern in patterns if (found := matching(pattern))), ())
        for group, patterns in CORE.items()
    }
    core["shared-memory wavefronts"] = (WAVEFRONTS,)
    steady, restless = (tuple(name for pattern in each for name in matching(pattern)) for each in (STEADY, RESTLESS))
    return Metrics(core, steady, restless)


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
        restless: metrics that differ between equal inputs, or are only listed and differ at all.
        counted: largest value of each core metric.
    """

    kernels: frozenset[str]
    findings: tuple[Finding, ...]
    restless: frozenset[str]
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
    restless: set[str] = set()
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
            comparison = _Comparison(kernel, its[position::times], secrets, findings, restless)
            comparison.core(read, counted)
            comparison.instructions((waiting or {}).get(kernel, frozenset()))
            comparison.other(read)
    return Judged(frozenset(by_kernel), tuple(findings), frozenset(restless), counted)


class _Comparison:
    """The launches of one kernel at one place in the call, one for each run."""

    def __init__(
        self, kernel: str, launches: list[Launch], secrets: Sequence[str], findings: list[Finding], restless: set[str]
    ):
        self._kernel = kernel
        self._launches = launches
        self._secrets = secrets
        self._findings = findings
        self._restless = restless

    def core(self, read: Metrics, counted: dict[str, float]) -> None:
        """Counters that must agree, or nothing is known."""
        for name in (name for names in read.core.values() for name in names):
            values = self._values(name)
            if not values:
                continue
            counted[name] = max(counted.get(name, 0.0), *values)
            if self._noisy(values):
                self._unknown(f"{name} differs between equal inputs, and may not be left out")
            else:
                self._compare(name, values)

    def instructions(self, waiting: frozenset[int]) -> None:
        """How often each instruction ran, but those of waiting loops."""
        values = [
            tuple(sorted((pc, count) for pc, count in launch.instances.get(PER_PC, {}).items() if pc not in waiting))
            for launch in self._launches
        ]
        if not all(any(count for _, count in value) for value in values):
            self._unknown("no executions of single instructions were read")
        elif self._noisy(values):
            self._unknown("the executions of single instructions differ between equal inputs")
        else:
            self._compare("executions of single instructions", values)

    def other(self, read: Metrics) -> None:
        """Counters that are judged where equal inputs agree, and those that are listed."""
        for name in read.steady:
            values = self._values(name)
            if values and self._noisy(values):
                self._restless.add(name)
            elif values:
                self._compare(name, values)
        for name in read.restless:
            if len(set(self._values(name))) > 1:
                self._restless.add(name)

    def _values(self, name: str) -> list[float]:
        """One for each launch; none where one cannot be read, which is noted."""
        values = [launch.metrics.get(name, math.nan) for launch in self._launches]
        if any(map(math.isnan, values)):
            self._unknown(f"{name} is missing, or no number")
            return []
        return values

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
    for group, names in read.core.items():
        if not any(each.counted.get(metric, 0.0) for each in judged for metric in names):
            unknown.append(
                f"no kernel counted anything for {group} ({', '.join(names) or 'no such metric on this GPU'})"
            )
    if not kernels:
        unknown.append("no kernel was profiled")
    restless = sorted(frozenset().union(*(each.restless for each in judged)))
    figures = {"kernels": sorted(kernels), "core": dict(read.core), "steady": list(read.steady), "noisy": restless}
    figures |= {"failed": failed, "unknown": unknown}
    if failed:
        return Check(name, Status.FAIL, f"counters depend on secrets: {'; '.join(failed[:5])}", figures)
    if unknown:
        return Check(name, Status.UNKNOWN, f"{len(unknown)} things are not known: {'; '.join(unknown[:5])}", figures)
    told = f"{len(kernels)} kernels: all core counters and the executions of each instruction agree over all secrets"
    return Check(name, Status.PASS, told + (f"; noise in {', '.join(restless)}" if restless else ""), figures)


def _gate(name: str, dtype: str, context: Context) -> list[Check]:
    folder = context.folder / "counters"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        read = metrics(ncu.known_metrics())
        waiting = waiting_loops()

        def judged(call: Call) -> Judged:
            first = call.secrets()[0]
            secrets = [*[first] * _EQUAL, *call.mixtures(), first]
            log = folder / f"{call.name}.csv"
            launches = ncu.run(["--call", to_text(call), "--secrets", ",".join(secrets)], read.all(), _KERNELS, log)
            return judge(launches, secrets, read, waiting)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(judged, [*calls(dtype), *forward_calls(dtype)]))
        return [conclude(name, found, read, _kernels_of(dtype))]
    except NoCountersError as reason:
        return [Check(name, Status.SKIPPED, str(reason))]
    except CountersError as problem:
        return [Check(name, Status.UNKNOWN, str(problem))]


def float32(context: Context) -> list[Check]:
    """Kernels of float32."""
    return _gate("gate 1 float32", "float32", context)


def bfloat16(context: Context) -> list[Check]:
    """Kernels of bfloat16."""
    return _gate("gate 1 bfloat16", "bfloat16", context)


def float16(context: Context) -> list[Check]:
    """Kernels of float16."""
    return _gate("gate 1 float16", "float16", context)


def controls(context: Context) -> list[Check]:
    """A kernel that stops at a secret length must fail."""
    name = "gate 1 control"
    if reason := _controls.objection():
        return [Check(name, Status.SKIPPED, reason, is_control=True)]
    folder = context.folder / "counters"
    folder.mkdir(parents=True, exist_ok=True)
    secrets = ["length 1024"] * _EQUAL + ["length 256", "length 1024"]
    try:
        read = metrics(ncu.known_metrics())
        arguments = ["--control", "leak", "--secrets", ",".join(secrets)]
        judged = judge(ncu.run(arguments, read.all(), "^control_leak", folder / "control.csv"), secrets, read)
    except NoCountersError as reason:
        return [Check(name, Status.SKIPPED, str(reason), is_control=True)]
    except CountersError as problem:
        return [Check(name, Status.UNKNOWN, str(problem), is_control=True)]
    return [judge_control(judged)]


def judge_control(judged: Judged) -> Check:
    """Whether the leak was seen."""
    told = [finding.text for finding in judged.findings if finding.status is Status.FAIL]
    seen = f"a kernel that stops at a length was seen by: {'; '.join(told)}"
    return control("gate 1 control", bool(told), seen if told else "a kernel that stops at a length was not seen")


def _kernels_of(dtype: str) -> list[str]:
    """The installed kernels of a dtype for this GPU, by the number that it has in their names."""
    return [name for name in proof.names(gpu.architecture()) if f"DTypeE{_DTYPES.index(dtype)}E" in name]


@functools.cache
def waiting_loops() -> dict[str, frozenset[int]]:
    """Addresses of the instructions in loops that wait for the hardware, by kernel; none where nvdisasm is missing."""
    if proof.objection():
        return {}
    library, architecture = installed_library(), gpu.architecture()
    waits = [
        (report.symbol, branch)
        for report in proof.reports(library, own_policies(), fresh=False)
        for branch in report.branches
        if report.architecture == architecture and branch.sort == "wait"
    ]
    places = _places(library.read_bytes(), architecture, {symbol for symbol, _ in waits}) if waits else {}
    return loops(waits, places)


@dataclasses.dataclass(frozen=True)
class Places:
    """Addresses in the code of one kernel: of its labels, and of the jumps that are always taken."""

    labels: Mapping[str, int]
    jumps: Set[int]


def loops(waits: Iterable[tuple[str, Branch]], places: Mapping[str, Places]) -> dict[str, frozenset[int]]:
    """From the label that each branch goes back to, to the branch itself, 16 bytes an instruction; by kernel.

    Code that only a jump can reach, when a first look found nothing to go on with, runs as often as that happens: of
    such a loop the jump that leads back is part.
    """
    found: dict[str, frozenset[int]] = {}
    for kernel, branch in waits:
        target = re.search(r"`\((\S+)\)", branch.instruction)
        own = places.get(kernel)
        begin = own.labels.get(target[1]) if own and target else None
        if own is None or begin is None or begin > branch.address:
            continue
        end = branch.address + 16
        if {begin - 16, end} <= own.jumps:
            end += 16
        found[kernel] = found.get(kernel, frozenset()) | frozenset(range(begin, end, 16))
    return found


def _places(library: bytes, architecture: str, symbols: Set[str]) -> dict[str, Places]:
    ours = [data for data in image.cubins(library) if cubins.architecture(data) == architecture]
    ours = [data for data in ours if any(symbol.encode() in data for symbol in symbols)]  # to disassemble takes long
    try:
        kernels = [kernel for data in ours for kernel in cubins.unread(data)]
    except UnverifiableError:
        return {}
    return {k.kernel.symbol: places(k.section.lines) for k in kernels if k.kernel.symbol in symbols}


def places(listing: Iterable[str]) -> Places:
    """From what nvdisasm writes, of which no more is read: the proof takes a minute to read all of it."""
    labels: dict[str, int] = {}
    jumps = set()
    end = 0
    for line in listing:
        if match := _INSTRUCTION.match(line):
            address = int(match[1], 16)
            end = address + 16
            if match[2]:
                jumps.add(address)
        elif match := _LABEL.fullmatch(line):
            labels[match[1]] = end
    return Places(labels, jumps)
