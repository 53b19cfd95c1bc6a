"""Whether our CUDA kernels can run in this process, and on what."""

from __future__ import annotations

import functools

import jax

from dhp_jax import ffi


@functools.cache
def objection() -> str:
    """Why our CUDA kernels cannot run here; empty where they can."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return "JAX sees no GPU"
    return ffi.gpu_objection(device)


def architecture() -> str:
    """The architecture whose machine code the current GPU runs, such as "sm_90a"."""
    capability = str(jax.devices()[0].compute_capability)
    return "sm_90a" if capability == "9.0" else "sm_80"


def cpu() -> jax.Device:
    """The CPU, which JAX has beside any GPU."""
    return jax.devices("cpu")[0]
