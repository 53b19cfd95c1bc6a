"""Finds the compiled module, checks that it fits the installed jaxlib, and registers its custom-call targets.

The only file that knows a symbol name.
"""

from __future__ import annotations

import functools
import importlib
import pathlib
import re
from typing import Any

import jax
import jax.export

TARGETS = {
    "attention_fwd": "dhp_attention_fwd",
    "attention_bwd": "dhp_attention_bwd",
    "attention_bwd_bias": "dhp_attention_bwd_bias",
}

DISABLE_EXPORT_CHECKS = [jax.export.DisabledSafetyCheck.custom_call(target) for target in TARGETS.values()]
"""Pass as ``jax.export.export(f, disabled_checks=dhp_jax.DISABLE_EXPORT_CHECKS)``: lists our custom calls."""

_REINSTALL = "Reinstall it from source with `pip install .`."


@functools.cache
def native() -> Any:
    """The compiled module.

    Raises:
      ImportError: it is not built, or was built for a newer jaxlib than the one installed.
    """
    try:
        module = importlib.import_module("dhp_jax._native")
    except ImportError as error:
        folder = pathlib.Path(__file__).parent
        in_sources = (folder.parent / "CMakeLists.txt").exists()
        remedy = f"Python took dhp_jax from the source tree {folder}; run from another folder. " if in_sources else ""
        raise ImportError(
            f"dhp_jax: the compiled module dhp_jax._native does not load ({error}). {remedy}{_REINSTALL}"
        ) from error
    check_ffi_version(module.FFI_API_VERSION, installed_ffi_version())
    return module


def installed_ffi_version() -> tuple[int, int]:
    """(major, minor) of the FFI of the installed jaxlib, from the header that it ships."""
    header = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text(encoding="utf-8")
    numbers = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header))
    return int(numbers["MAJOR"]), int(numbers["MINOR"])


def check_ffi_version(built: tuple[int, int], installed: tuple[int, int]) -> None:
    """Raises ImportError unless XLA will accept handlers of version `built`.

    XLA takes handlers of its own version and of older ones. One that is newer would make every later JAX operation
    fail, ours or not, so it must not be registered.
    """
    if built[0] == installed[0] and built[1] <= installed[1]:
        return
    raise ImportError(
        f"dhp_jax was built on XLA FFI {built[0]}.{built[1]}, and the installed jaxlib has {installed[0]}."
        f"{installed[1]}; it must have the same major and at least the same minor version. Upgrade jax, or build "
        "dhp_jax on this machine. " + _REINSTALL
    )


def forward_workspace(sizes: dict[str, int], **facts: Any) -> int:
    """Elements of the float32 workspace of a forward call; `sizes` by axis letter, `facts` of launch/workspace.h.

    0 where a size is not known yet (shape polymorphism); the call then does without.
    """
    if not all(isinstance(size, int) for size in sizes.values()):
        return 0
    return int(native().forward_workspace(**sizes, **facts))


@functools.cache
def register_targets() -> None:
    """Registers our custom-call targets with JAX, for every platform this build has.

    Calling an attention function does this by itself; a process that only runs an exported program calls it first.
    """
    for platform, targets in native().registrations().items():
        for target, handler in targets.items():
            jax.ffi.register_ffi_target(target, handler, platform=platform)


def require(platform: str) -> None:
    """Raises NotImplementedError where a program for `platform` could be lowered here but never run here."""
    if platform == "cuda" and not native().CUDA_ARCHITECTURES and _has_gpu():
        raise NotImplementedError(
            "dhp_jax: this installation has no CUDA kernels, and JAX has a GPU. There is no silent fallback. "
            "Reinstall with DHP_CUDA=1 set (see BUILD.md), or run under jax.default_device(jax.devices('cpu')[0])."
        )


def _has_gpu() -> bool:
    return any(device.platform == "gpu" for device in jax.devices())


def gpu_objection(device: Any) -> str:
    """Why our CUDA kernels cannot run on an accelerator that JAX has; empty where they can."""
    if device.platform != "gpu" or "rocm" in getattr(device.client, "platform_version", "").lower():
        return f"platform {device.platform}: there are kernels for CUDA and for the CPU only"
    if not native().CUDA_ARCHITECTURES:
        return "this installation has no CUDA kernels; reinstall with DHP_CUDA=1 set"
    major, minor = map(int, device.compute_capability.split("."))
    return native().gpu_objection(major, minor)


def build_info() -> dict[str, Any]:
    """How the native code was built: FFI version, CUDA architectures ("" without CUDA), CPU instruction set."""
    module = native()
    return {
        "ffi_version": module.FFI_API_VERSION,
        "cuda_architectures": module.CUDA_ARCHITECTURES,
        "host_isa": module.host_isa(),
    }
