"""Loop 6, gate 2: the static proof on the installed binary, and on the controls, which it must call LEAK."""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib

from dhp_jax.validate import _controls
from dhp_jax.validate.outcome import Check, Status, control
from dhp_jax.validate.plan import Context
from dhp_jax.verify import (
    KernelReport,
    Policies,
    UnverifiableError,
    Verdict,
    cubin,
    disassembly,
    elf,
    image,
    policy,
    verify_images,
)
from dhp_jax.verify.__main__ import installed_library, own_policies
from dhp_jax.verify.cache import Cache, Fresh

# The rule that must report each control. Their parameters are addresses, and all memory is secret.
EXPECTED = {
    "control_leak": "CT01",
    "control_unordered_sum": "CT05",
    "control_stage": "CT02",
    "control_begin": "CT07",
    "control_end": "CT07",
    "control_delay": "CT01",
}
HARMLESS = ("control_next",)  # it counts runs


def code_hashes(library: pathlib.Path) -> dict[tuple[str, str], str]:
    """SHA-256 of the machine code by (architecture, symbol), of all kernels of a library; nothing is disassembled."""
    found = {}
    for data in image.cubins(library.read_bytes()):
        parsed = elf.parse(data)
        for section in parsed.sections:
            if section.executable:
                symbol = section.name.removeprefix(".text.")
                found[cubin.architecture(data), symbol] = hashlib.sha256(section.data).hexdigest()
    return found


def names(architecture: str) -> list[str]:
    """Symbols of the installed kernels for one architecture."""
    return sorted(symbol for found, symbol in code_hashes(installed_library()) if found == architecture)


def reports(library: pathlib.Path, policies: Policies, *, fresh: bool) -> list[KernelReport]:
    """What the analyser says of a library; `fresh` believes no earlier verdict, and keeps its own."""
    cache = (Fresh if fresh else Cache).of_user()
    return verify_images([library], policies, processes=os.cpu_count() or 1, cache=cache)


def kernels(context: Context) -> list[Check]:
    """All installed CUDA kernels are SAFE."""
    if reason := objection():
        return [Check("gate 2", Status.SKIPPED, reason)]
    library = installed_library()
    return [judge(reports(library, own_policies(), fresh=True), _sha256(library))]


def judge(found: list[KernelReport], library_hash: str) -> Check:
    """One check from the reports on all kernels; only SAFE is a pass, and nothing at all is none."""
    verdict = Verdict.of_all(report.verdict for report in found)
    counts = collections.Counter(report.verdict.name for report in found)
    unsafe = [f"{report.kernel} {report.architecture}" for report in found if report.verdict is not Verdict.SAFE]
    figures = {"library": library_hash, "verdicts": dict(counts), "not safe": unsafe}
    status = {Verdict.SAFE: Status.PASS, Verdict.LEAK: Status.FAIL, Verdict.UNKNOWN: Status.UNKNOWN}[verdict]
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no kernel"
    return Check("gate 2", status, f"static proof of the installed machine code: {told}", figures)


def controls(context: Context) -> list[Check]:
    """The analyser reports every control kernel, each by the rule that is meant."""
    name = "gate 2 control"
    try:
        disassembly.version()
        library = _controls.library()
    except (UnverifiableError, _controls.ControlsError) as reason:
        return [Check(name, Status.SKIPPED, str(reason), is_control=True)]
    return [judge_controls(reports(library, Policies(), fresh=True))]


def judge_controls(found: list[KernelReport]) -> Check:
    """Whether each control was reported, on every architecture, by its rule."""
    missed = sorted(EXPECTED.keys() - {policy.function_name(report.kernel) for report in found})
    leaks = [report for report in found if policy.function_name(report.kernel) not in HARMLESS]
    for report in leaks:
        kernel = policy.function_name(report.kernel)
        rules = {finding.rule for finding in report.findings}
        if report.verdict is not Verdict.LEAK or EXPECTED.get(kernel) not in rules:
            missed.append(f"{kernel} {report.architecture}: {report.verdict.name} {sorted(rules)}")
    told = f"not reported as meant: {missed}" if missed else f"{len(leaks)} kernels that leak on purpose are all LEAK"
    return control("gate 2 control", not missed, told, missed=missed)


def objection() -> str:
    """Why nothing can be proved here; empty where it can."""
    try:
        disassembly.version()
        image.cubins(installed_library().read_bytes())
    except UnverifiableError as problem:
        return str(problem)
    return ""


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
