"""One kernel and its policy in, one report out."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify import branches
from dhp_jax.verify.cubin import Kernel
from dhp_jax.verify.disassembly import Frame
from dhp_jax.verify.instruction import Instruction
from dhp_jax.verify.layout import Role
from dhp_jax.verify.memory import SHARED, Memory
from dhp_jax.verify.opcodes import Admits
from dhp_jax.verify.policy import Policy
from dhp_jax.verify.report import Branch, Finding, KernelReport, Line, PathStep, Problem
from dhp_jax.verify.rules import RULES, Rule
from dhp_jax.verify.site import Site
from dhp_jax.verify.taint import Analysis
from dhp_jax.verify.value import Step
from dhp_jax.verify.verdict import UnverifiableError, Verdict

# Architectures of chips on which the allow-list was timed (benchmarks/results, latency).
_MEASURED = frozenset({"sm_90", "sm_90a"})


def verify_kernel(kernel: Kernel, policy: Policy) -> KernelReport:
    """Analyses one kernel."""
    sites: list[Site] = []
    problems: list[UnverifiableError] = []
    try:
        if kernel.listing.problem is not None:
            raise kernel.listing.problem
        policy.check(kernel.parameters)
        analysis = Analysis(kernel, policy)
        analysis.run()
        sites, problems = analysis.sites, analysis.problems()
    except UnverifiableError as problem:
        problems = [problem]
    lines = _Lines(kernel)
    findings = _findings(kernel, sites, lines)
    problems += _unspoken(sites, {finding.address for finding in findings})
    sorts = branches.sorts(sites, kernel.listing.labels)
    code = [listed.instruction for listed in kernel.listing.code if listed.life is not None]
    return KernelReport(
        kernel=kernel.name,
        symbol=kernel.symbol,
        architecture=kernel.architecture,
        verdict=Verdict.LEAK if findings else Verdict.UNKNOWN if problems else Verdict.SAFE,
        findings=tuple(findings),
        problems=tuple(Problem(problem.problem, problem.remedy) for problem in problems),
        code_hash=kernel.code_hash,
        ptxas=kernel.ptxas,
        registers=kernel.registers,
        shared_bytes=kernel.shared_bytes,
        stack_bytes=kernel.stack_bytes,
        spills=sum(instruction.opcode in ("LDL", "STL") for instruction in code),
        instructions=len(code),
        branches=tuple(
            Branch(instruction.address, instruction.text, sorts[instruction.address], lines.innermost(instruction))
            for instruction in code
            if instruction.address in sorts
        ),
        public=policy.describe(),
        assumptions=_assumptions(kernel.architecture),
    )


class _Lines:
    """Source lines of instructions."""

    def __init__(self, kernel: Kernel):
        self._frames = {listed.instruction.address: listed.frames for listed in kernel.listing.code}

    def all(self, instruction: Instruction) -> tuple[Line, ...]:
        return tuple(_line(frame) for frame in self._frames[instruction.address])

    def innermost(self, instruction: Instruction | None) -> Line | None:
        lines = self.all(instruction) if instruction is not None else ()
        return lines[0] if lines else None


def _line(frame: Frame) -> Line:
    return Line(frame.file, frame.line)


def _findings(kernel: Kernel, sites: list[Site], lines: _Lines) -> list[Finding]:
    """One finding for each rule and instruction, whatever the number of states and operands."""
    found: dict[tuple[int, str], Finding] = {}
    for site in sites:
        if site.idle:
            continue
        for rule in RULES:
            key = (site.instruction.address, rule.id)
            for problem, secret in rule.offences(site):
                if key not in found:
                    found[key] = _finding(kernel, rule, site, problem, secret, lines)
    return [found[key] for key in sorted(found)]


def _finding(kernel: Kernel, rule: Rule, site: Site, problem: str, secret: Step | None, lines: _Lines) -> Finding:
    path = [
        PathStep(
            step.instruction.address if step.instruction else -1,
            step.instruction.text if step.instruction else "",
            step.place,
            step.reason,
            lines.innermost(step.instruction),
        )
        for step in _way(secret, site.memory)
    ]
    instruction = site.instruction
    return Finding(
        rule.id,
        rule.name,
        kernel.name,
        instruction.address,
        instruction.text,
        problem,
        lines.all(instruction),
        tuple(path),
        rule.remedy,
    )


def _way(secret: Step | None, memory: Memory) -> list[Step]:
    """The steps of a secret. Where it came out of shared memory, one way by which secrets get there comes first."""
    steps = secret.path() if secret else []
    if steps and steps[0].reason == SHARED and memory.shared is not None:
        return memory.shared.path() + steps
    return steps


def _unspoken(sites: list[Site], reported: set[int]) -> Iterator[UnverifiableError]:
    """Default deny for rules: a secret where the table admits none must have been reported by one of them."""
    for site in sites:
        if site.idle or site.instruction.address in reported:
            continue
        admits = site.opcode.admits
        denied = site.secrets(*(role for role in Role if role is not Role.DATA or admits is Admits.NOTHING))
        if any(denied) or (not site.admits_guard and site.guard_secret()):
            yield UnverifiableError(
                f"{site.instruction.address:#06x}: a secret reaches {site.instruction.text!r}; no rule speaks of it",
                "A rule in verify/rules must cover this use.",
            )


def _assumptions(architecture: str) -> tuple[str, ...]:
    if architecture in _MEASURED:
        return ()
    return (
        f"on {architecture} it is assumed that instructions which verify/opcodes.py allows on secrets take a time that "
        "does not depend on their operands, nor on a secret guard where one is allowed; it was measured on sm_90 alone",
    )
