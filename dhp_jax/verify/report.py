"""What is said of one kernel: plain data, so that it can be written as JSON, kept, and read back."""

from __future__ import annotations

import dataclasses
from typing import Any

from dhp_jax.verify.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Line:
    """A source line. `file` and `line` are those of the line table."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True)
class PathStep:
    """One step of the way that a secret took.

    Attributes:
        address: of the instruction, in bytes from the kernel's begin; -1 for what was there before.
        instruction: as nvdisasm writes it.
        place: the register that it wrote.
        reason: where the secret comes from, at the first step; how it got on, later.
        line: the innermost source line, None without line info.
    """

    address: int
    instruction: str
    place: str
    reason: str
    line: Line | None


@dataclasses.dataclass(frozen=True)
class Finding:
    """One instruction that breaks a rule.

    Attributes:
        rule: ID, such as "CT02".
        name: of the rule.
        kernel: demangled.
        address: of the instruction, in bytes from the kernel's begin.
        instruction: as nvdisasm writes it.
        problem: what is wrong with it.
        lines: its source line, then the lines it was inlined at; empty without line info.
        path: the way that the secret took, its source first.
        remedy: what to do about it.
    """

    rule: str
    name: str
    kernel: str
    address: int
    instruction: str
    problem: str
    lines: tuple[Line, ...]
    path: tuple[PathStep, ...]
    remedy: str


@dataclasses.dataclass(frozen=True)
class Branch:
    """One predicated branch or exit: where it stands, and of what sort it is."""

    address: int
    instruction: str
    sort: str
    line: Line | None


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why nothing is claimed, and the way out."""

    problem: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """All that is said of one kernel.

    Attributes:
        kernel: demangled name; of an image without readable kernels, the name of the file.
        symbol: mangled name.
        architecture: such as "sm_90a".
        verdict: SAFE, LEAK or UNKNOWN.
        findings: by address.
        problems: what the model does not cover.
        code_hash: SHA-256 of the machine code.
        ptxas: version of the assembler that made it.
        registers: of each thread.
        shared_bytes: static shared memory of a block.
        stack_bytes: local memory of a thread.
        spills: loads and stores of local memory in the code.
        instructions: in the code, without padding at the end.
        branches: every predicated branch and exit.
        public: what the policy lets count as public, and why.
        assumptions: what the verdict rests on, beyond SECURITY.md, on this architecture.
        declassified: places where a secret is made public on purpose. There are none, and no way to have one: a
            ct_declassify would have to leave an instruction that ptxas can neither drop nor move, of a form that
            occurs nowhere else (a volatile shuffle with a clamp of its own, say). The result of that instruction alone
            would become public, and each would be listed here.
    """

    kernel: str
    symbol: str
    architecture: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    problems: tuple[Problem, ...] = ()
    code_hash: str = ""
    ptxas: str = ""
    registers: int = 0
    shared_bytes: int = 0
    stack_bytes: int = 0
    spills: int = 0
    instructions: int = 0
    branches: tuple[Branch, ...] = ()
    public: str = ""
    assumptions: tuple[str, ...] = ()
    declassified: tuple[str, ...] = ()

    def branch_counts(self) -> dict[str, int]:
        """How many predicated branches there are of each sort."""
        counts: dict[str, int] = {}
        for branch in self.branches:
            counts[branch.sort] = counts.get(branch.sort, 0) + 1
        return dict(sorted(counts.items()))


def unknown(name: str, problem: str, remedy: str) -> KernelReport:
    """The report on something that cannot be read at all."""
    return KernelReport(name, "", "", Verdict.UNKNOWN, problems=(Problem(problem, remedy),))


def to_json(report: KernelReport) -> dict[str, Any]:
    """A report as JSON has it."""
    data = dataclasses.asdict(report)
    return {**data, "verdict": report.verdict.name, "branch_counts": report.branch_counts()}


def from_json(data: dict[str, Any]) -> KernelReport:
    """The report that to_json wrote."""

    def line(entry: dict[str, Any] | None) -> Line | None:
        return Line(**entry) if entry else None

    def lines(entries: list[dict[str, Any]]) -> tuple[Line, ...]:
        return tuple(Line(**entry) for entry in entries)

    findings = tuple(
        Finding(
            **{
                **finding,
                "lines": lines(finding["lines"]),
                "path": tuple(PathStep(**{**step, "line": line(step["line"])}) for step in finding["path"]),
            }
        )
        for finding in data["findings"]
    )
    return KernelReport(
        **{
            **{name: value for name, value in data.items() if name != "branch_counts"},
            "verdict": Verdict[data["verdict"]],
            "findings": findings,
            "problems": tuple(Problem(**problem) for problem in data["problems"]),
            "branches": tuple(Branch(**{**branch, "line": line(branch["line"])}) for branch in data["branches"]),
            "assumptions": tuple(data["assumptions"]),
            "declassified": tuple(data["declassified"]),
        }
    )
