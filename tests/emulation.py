"""The CUDA kernels compiled for this CPU: tests/emulator in place of the GPU."""

import platform

import nvcc
from nvcc import ROOT

FOLDER = ROOT / "tests" / "emulator"
CAPABILITY = "DHP_EMULATED_CAPABILITY"  # environment variable: the emulated GPU's, 8 or 9
DRIVER = "DHP_EMULATED_DRIVER"  # environment variable: "old", which has no tensor maps, or "refusing"
_CUDA = ROOT / "cuda"
_PARTS = (
    _CUDA / "launch" / "launch.cu",
    _CUDA / "launch" / "launch_sm90.cu",
    _CUDA / "launch" / "checks.cc",
    _CUDA / "launch" / "tensor_map.cc",
    FOLDER / "emulator.cc",
    FOLDER / "as_host_kernels.cc",
)
# nvcc, told that all is C++, only adds the folder of its headers.
_FLAGS = (
    *("-x", "c++", "-std=c++20", "-O3", "-cudart=none"),
    "-Xcompiler=-march=native,-fPIC,-ftrivial-auto-var-init=pattern,-Wno-unknown-pragmas",
    *("-include", str(FOLDER / "emulator.h")),
)


def library(cuda=_CUDA):
    """Path of a library that, preloaded, has the emulated kernels in place of the host kernels."""
    _check_processor()
    main = cuda / "launch" / "launch.cu"
    parts = [cuda / part.relative_to(_CUDA) if part.is_relative_to(_CUDA) else part for part in _PARTS]
    others = [str(part) for part in parts if part != main]
    flags = (*_FLAGS, "-shared", f"-I{FOLDER}", f"-I{cuda}", *others)
    with nvcc.alone("emulated"):
        return nvcc.compiled("emulated.so", [main, *_headers(cuda), *parts], flags)


def program(source):
    """Path of a program that a file of tests/emulator makes with the emulator."""
    _check_processor()
    flags = (*_FLAGS, f"-I{FOLDER}", f"-I{_CUDA}", str(FOLDER / "emulator.cc"))
    with nvcc.alone("emulated"):
        return nvcc.compiled(f"{source.stem}.program", [source, *_headers(_CUDA), FOLDER / "emulator.cc"], flags)


def _headers(cuda):
    return sorted(path for folder in (cuda, FOLDER) for path in folder.rglob("*") if path.suffix in (".h", ".cuh"))


def _check_processor():
    if platform.machine() != "x86_64":
        nvcc.cannot_run("the emulator switches between fibers on x86-64 only")
