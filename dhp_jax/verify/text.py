"""Reports for people to read."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.report import Finding, KernelReport, PathStep
from dhp_jax.verify.verdict import Verdict


def render(reports: list[KernelReport]) -> str:
    """All reports as text: a paragraph for each kernel, then what they rest on, then the verdict."""
    lines = [line for report in reports for line in _kernel(report)]
    for assumption in sorted({text for report in reports for text in report.assumptions}):
        lines.append(f"assumed: {assumption}")
    for public in sorted({report.public for report in reports if report.public}):
        lines.append(f"public by policy: {public}")
    declassified = sorted({text for report in reports for text in report.declassified})
    lines.append(f"declassified: {', '.join(declassified) or 'nothing'}")
    counts = {verdict: sum(report.verdict is verdict for report in reports) for verdict in Verdict}
    said = ", ".join(f"{count} {verdict.name}" for verdict, count in counts.items() if count)
    lines.append(f"{Verdict.of_all(report.verdict for report in reports).name}: {said}")
    return "\n".join(lines) + "\n"


def _kernel(report: KernelReport) -> Iterator[str]:
    yield f"{report.verdict.name}  {report.kernel}  {report.architecture}".rstrip()
    if report.code_hash:
        sorts = ", ".join(f"{count} {sort}" for sort, count in report.branch_counts().items())
        yield (
            f"    {report.instructions} instructions, {report.registers} registers, {report.shared_bytes} bytes "
            f"shared, {report.stack_bytes} bytes stack, {report.spills} local accesses; "
            f"predicated branches: {sorts or 'none'}"
        )
        yield f"    code {report.code_hash}, ptxas {report.ptxas}"
    for finding in report.findings:
        yield from _finding(finding)
    for problem in report.problems:
        yield f"    unknown: {problem.problem}. {problem.remedy}"


def _finding(finding: Finding) -> Iterator[str]:
    yield f"  {finding.rule} {finding.name}: {finding.problem}"
    yield f"    {finding.address:#06x}  {finding.instruction}"
    for number, line in enumerate(finding.lines):
        yield f"            {'at' if number == 0 else 'inlined at'} {line}"
    for step in finding.path:
        yield f"      {_step(step)}"
    yield f"    remedy: {finding.remedy}"


def _step(step: PathStep) -> str:
    if step.address < 0:
        return f"{step.place}: {step.reason}"
    where = f", {step.line}" if step.line else ""
    return f"{step.place or '-'} <- {step.reason} at {step.address:#06x}  {step.instruction}{where}"
