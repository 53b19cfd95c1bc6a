"""Loop 2: which binary is installed, what its kernels use, and whether it is the one that was released."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

from dhp_jax import ffi
from dhp_jax.validate import proof
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Context
from dhp_jax.verify import KernelReport
from dhp_jax.verify.__main__ import installed_library, own_policies

_HERE = pathlib.Path(__file__).parent
# Beside the module in an installation; in a source tree, the file that the installation copies.
_MANIFESTS = (_HERE / "manifest.json", _HERE.parents[1] / "docs" / "verified_kernels.json")


def hashes(context: Context) -> list[Check]:
    """SHA-256 of the native module and of the kernel library."""
    files = [pathlib.Path(ffi.native().__file__), installed_library()]
    figures = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    told = ", ".join(f"{name} {digest[:16]}" for name, digest in figures.items())
    return [Check("hashes", Status.PASS, told, figures)]


def resources(context: Context) -> list[Check]:
    """What each CUDA kernel uses, which must be no local memory; and how it differs from the release."""
    if reason := proof.objection():
        return [Check(name, Status.SKIPPED, reason) for name in ("resources", "manifest")]
    library = installed_library()
    found = proof.reports(library, own_policies(), fresh=False)
    return [judge_resources(found), judge_manifest(proof.code_hashes(library), released())]


def judge_resources(found: list[KernelReport]) -> Check:
    """No kernel may spill: a spill is secret data in local memory."""
    figures: dict[str, Any] = {
        "ptxas": sorted({report.ptxas for report in found}),
        "architectures": sorted({report.architecture for report in found}),
        "kernels": [
            {
                "kernel": report.kernel,
                "architecture": report.architecture,
                "registers": report.registers,
                "static shared bytes": report.shared_bytes,
                "stack bytes": report.stack_bytes,
                "spills": report.spills,
                "code": report.code_hash,
            }
            for report in found
        ],
    }
    unread = [report.kernel for report in found if not report.code_hash]
    if unread or not found:
        return Check("resources", Status.UNKNOWN, f"not read: {unread or 'there is no kernel'}", figures)
    spilled = [f"{report.kernel} {report.architecture}" for report in found if report.spills or report.stack_bytes]
    most = max(report.registers for report in found)
    told = f"{len(found)} kernels by ptxas {', '.join(figures['ptxas'])}, at most {most} registers, "
    told += f"local memory in {spilled}" if spilled else "no spill"
    return Check("resources", Status.FAIL if spilled else Status.PASS, told, figures)


def released() -> dict[tuple[str, str], str] | None:
    """Code hashes of the release by (architecture, symbol); None where no manifest was installed."""
    for path in _MANIFESTS:
        if path.exists():
            kernels: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
            return {(kernel["architecture"], kernel["symbol"]): kernel["code_hash"] for kernel in kernels}
    return None


def judge_manifest(installed: dict[tuple[str, str], str], release: dict[tuple[str, str], str] | None) -> Check:
    """Whether the machine code is the released one. A difference is no failure: gate 2 judges what is installed."""
    if release is None:
        return Check("manifest", Status.UNKNOWN, "the installation has no manifest of the release")
    differs = sorted(key for key in installed.keys() | release.keys() if installed.get(key) != release.get(key))
    figures = {"differs": [" ".join(key) for key in differs]}
    if differs:
        told = (
            f"{len(differs)} of {len(installed)} kernels are not those of the release: another build, or another source"
        )
        return Check("manifest", Status.UNKNOWN, told, figures)
    return Check("manifest", Status.PASS, f"all {len(installed)} kernels are those of the release", figures)
