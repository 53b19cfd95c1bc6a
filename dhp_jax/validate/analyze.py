"""Loop 1: the machine, what is installed on it, and which kernels will run."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import sys
from typing import Any

import jax

import dhp_jax
from dhp_jax import ffi
from dhp_jax.validate import gpu, machine, proof
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Context

_PACKAGES = ("dhp_jax", "jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "numpy", "flax", "torch")
_HELD_BACK = 0x8 | 0x20 | 0x40 | 0x80  # hardware slowdown, software and hardware thermal slowdown, power brake


def machine_facts(context: Context) -> list[Check]:
    """The GPU, its driver and clocks; whether something holds its clock back before anything runs."""
    figures: dict[str, Any] = {"processor": _processor(), "cores": len(os.sched_getaffinity(0))}
    if reason := gpu.objection():
        return [Check("machine", Status.SKIPPED, f"no GPU that our kernels run on: {reason}", figures)]
    device = jax.devices()[0]
    figures |= {"gpu": device.device_kind, "gpus": jax.device_count("gpu")}
    figures |= {
        "compute capability": str(device.compute_capability),
        "platform version": device.client.platform_version,
    }
    try:
        figures |= machine.facts() | machine.state()
    except RuntimeError as problem:
        return [Check("machine", Status.UNKNOWN, str(problem), figures)]
    reasons = int(figures["clocks_event_reasons.active"], 16)
    if reasons & _HELD_BACK:
        told = f"the clock is held back (reasons {reasons:#x}): times would say little"
        return [Check("machine", Status.UNKNOWN, told, figures)]
    return [Check("machine", Status.PASS, f"{device.device_kind}, driver {figures['driver_version']}", figures)]


def software(context: Context) -> list[Check]:
    """Versions, the FFI that they meet on, and the kernels that will be used."""
    info = dhp_jax.build_info()
    figures: dict[str, Any] = {"python": sys.version.split()[0], **_versions()}
    figures |= {"ffi built on": list(info["ffi_version"]), "ffi of jaxlib": list(ffi.installed_ffi_version())}
    figures |= {"cuda architectures": info["cuda_architectures"], "cpu kernels": info["host_isa"]}
    if not gpu.objection():
        architecture = gpu.architecture()
        figures |= {"gpu kernels": architecture, "kernels": proof.names(architecture)}
    used = f"cpu {info['host_isa']}" + ("" if gpu.objection() else f", gpu {gpu.architecture()}")
    return [
        Check(
            "software", Status.PASS, f"dhp_jax {dhp_jax.__version__}, jax {jax.__version__}; kernels: {used}", figures
        )
    ]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
