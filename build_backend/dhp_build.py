"""PEP 517 backend: scikit-build-core, plus nvcc from PyPI where CUDA is built and the machine has none that fits."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403  # the hooks that need nothing of ours

CUDA_MAJOR = 13
# One release of the toolkit, the one that our results were measured with; its parts must not be mixed.
NVCC_WHEELS = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
]


def wants_cuda() -> bool:
    """DHP_CUDA where it is set, else whether the machine has an NVIDIA driver (as in CMakeLists.txt)."""
    setting = os.environ.get("DHP_CUDA", "")
    if setting:
        return setting.upper() not in ("0", "OFF", "NO", "FALSE")
    return pathlib.Path("/proc/driver/nvidia/version").exists()


def machine_nvcc() -> str | None:
    """The nvcc that CMake would find, if it is of the right release."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.", version)
    return nvcc if found and int(found[1]) == CUDA_MAJOR else None


def get_requires_for_build_wheel(config_settings=None):
    extra = NVCC_WHEELS if wants_cuda() and machine_nvcc() is None else []
    return [*_build.get_requires_for_build_wheel(config_settings), *extra]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _point_cmake_to_nvcc()
    return _build.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _point_cmake_to_nvcc()
    return _build.build_editable(wheel_directory, config_settings, metadata_directory)


def _point_cmake_to_nvcc() -> None:
    if not wants_cuda():
        return
    nvcc = machine_nvcc()
    if nvcc is None:
        toolkit = wheel_toolkit()
        nvcc = str(toolkit / "bin" / "nvcc")
        # nvcc looks for its libraries in lib64; the wheels put them in lib, where the host compiler must be sent.
        paths = [str(toolkit / "lib"), os.environ.get("LIBRARY_PATH", "")]
        os.environ["LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    os.environ["CUDACXX"] = nvcc


def wheel_toolkit() -> pathlib.Path:
    """The folder of the wheels that get_requires_for_build_wheel asked for."""
    for folder in importlib.util.find_spec("nvidia").submodule_search_locations:
        toolkit = pathlib.Path(folder, f"cu{CUDA_MAJOR}")
        if (toolkit / "bin" / "nvcc").exists():
            return toolkit
    raise RuntimeError(
        "dhp_jax: no nvcc was found beside the build requirements; build with pip's build isolation, or set CUDACXX to "
        f"an nvcc of CUDA {CUDA_MAJOR}."
    )
