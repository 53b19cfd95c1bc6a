"""`python -m dhp_jax`: what is installed, what will run on each device, what is missing, and why."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator

import jax

import dhp_jax
from dhp_jax import ffi


def main() -> int:
    """Prints the report; returns 0 where attention runs on every device that JAX has, else 1."""
    print(f"dhp_jax {dhp_jax.__version__}, Python {sys.version.split()[0]}")
    print("  " + ", ".join(_versions("jax", "jaxlib", "jax-cuda13-plugin", "numpy", "flax")))
    try:
        info = dhp_jax.build_info()
    except ImportError as error:
        print(f"  native module: missing. {error}")
        return 1
    print(f"  native module: XLA FFI {'.'.join(map(str, info['ffi_version']))}")
    print(f"  CUDA kernels: {info['cuda_architectures'] or 'none, built without CUDA (BUILD.md says how)'}")
    objections = [_report(device, info["host_isa"]) for device in _devices()]
    return 1 if any(objections) else 0


def _versions(*names: str) -> Iterator[str]:
    for name in names:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} not installed"


def _devices() -> list[jax.Device]:
    """One device of each sort that JAX has, and the CPU."""
    devices = [*jax.devices(), *jax.devices("cpu")]
    return list({(device.platform, device.device_kind): device for device in devices}.values())


def _report(device: jax.Device, host_isa: str) -> str:
    """Prints what will run on a device; returns why nothing will, empty where something does."""
    if device.platform == "cpu":
        print(f"  {device.device_kind} (cpu): host kernels for {host_isa}")
        return ""
    objection = ffi.gpu_objection(device)
    capability = getattr(device, "compute_capability", "unknown")
    print(f"  {device.device_kind} (compute capability {capability}): {objection or 'CUDA kernels'}")
    return objection


if __name__ == "__main__":
    sys.exit(main())
