"""Chooses JAX's platform before any test imports JAX: the CPU, or with `pytest -m gpu` the GPU."""

import os

import pytest

# The sharding tests need several devices; a CPU can pose as eight.
_EIGHT_CPU_DEVICES = "--xla_force_host_platform_device_count=8"


def pytest_configure(config):
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_EIGHT_CPU_DEVICES}".strip()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not _wants_gpu(config):
        os.environ["JAX_PLATFORMS"] = "cpu"


def pytest_sessionstart(session):
    """A run that asks for the GPU and has none must not pass as an empty run."""
    if _wants_gpu(session.config):
        import jax

        if jax.default_backend() != "gpu":
            raise pytest.UsageError(
                f"-m gpu was given and JAX runs on {jax.default_backend()}; these tests need an NVIDIA GPU that JAX "
                "sees. Install jax[cuda13] and leave JAX_PLATFORMS unset, or leave -m gpu out."
            )


def _wants_gpu(config):
    chosen = config.getoption("markexpr")
    return "gpu" in chosen and "not gpu" not in chosen
