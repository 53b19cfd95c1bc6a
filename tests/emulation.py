"""The CUDA kernels compiled for this CPU: tests/emulator in place of the GPU."""

import platform
from concurrent.futures import ThreadPoolExecutor

import nvcc
from nvcc import ROOT

FOLDER = ROOT / "tests" / "emulator"
CAPABILITY = "DHP_EMULATED_CAPABILITY"  # environment variable: the emulated GPU's, 8 or 9
MULTIPROCESSORS = "DHP_EMULATED_MULTIPROCESSORS"  # environment variable: how many it has
LAUNCHES = "DHP_EMULATED_LAUNCHES"  # environment variable: a file for names of kernels, which then do not run
DRIVER = "DHP_EMULATED_DRIVER"  # environment variable: "old", which has no tensor maps, or "refusing"
_CUDA = ROOT / "cuda"
_EMULATOR = tuple(FOLDER / f"{name}.cc" for name in ("emulator", "copies", "products", "launches", "cuda_runtime"))
_PARTS = (
    _CUDA / "launch" / "launch.cu",
    _CUDA / "launch" / "launch_sm90.cu",
    _CUDA / "launch" / "launch_small_sm90.cu",
    _CUDA / "launch" / "launch_decode_sm90.cu",
    _CUDA / "launch" / "checks.cc",
    _CUDA / "launch" / "tensor_map.cc",
    *_EMULATOR,
    FOLDER / "as_host_kernels.cc",
)
_AT_ONCE = 2  # compilers
# nvcc, told that all is C++, only adds the folder of its headers.
_FLAGS = (
    *("-x", "c++", "-std=c++20", "-O3", "-cudart=none"),
    "-Xcompiler=-march=native,-fPIC,-ftrivial-auto-var-init=pattern,-Wno-unknown-pragmas",
    *("-include", str(FOLDER / "emulator.h")),
)


def library(cuda=_CUDA):
    """Path of a library that, preloaded, has the emulated kernels in place of the host kernels."""
    _check_processor()
    with nvcc.alone("emulated"), ThreadPoolExecutor(_AT_ONCE) as pool:
        objects = list(pool.map(lambda part: _object(part, cuda), _PARTS))
        return nvcc.compiled("emulated.so", objects, ("-shared", "-cudart=none", *map(str, objects[1:])))


def _object(part, cuda):
    """Path of a part compiled with the headers of `cuda`, which may be a changed copy of ours."""
    seen = [part, *nvcc.included(part, _CUDA)]
    changed = any(
        (cuda / file.relative_to(_CUDA)).read_bytes() != file.read_bytes()
        for file in seen
        if file.is_relative_to(_CUDA)
    )
    root = cuda if changed else _CUDA  # what sees no change is not compiled again
    files = [root / file.relative_to(_CUDA) if file.is_relative_to(_CUDA) else file for file in seen]
    return nvcc.compiled(f"{part.stem}.o", [*files, *_headers(FOLDER)], (*_FLAGS, "-c", f"-I{FOLDER}", f"-I{root}"))


def program(source):
    """Path of a program that a file of tests/emulator makes with the emulator."""
    _check_processor()
    flags = (*_FLAGS, f"-I{FOLDER}", f"-I{_CUDA}", *map(str, _EMULATOR))
    with nvcc.alone("emulated"):
        made_from = [source, *_headers(_CUDA), *_headers(FOLDER), *_EMULATOR]
        return nvcc.compiled(f"{source.stem}.program", made_from, flags)


def _headers(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cuh"))


def _check_processor():
    if platform.machine() != "x86_64":
        nvcc.cannot_run("the emulator switches between fibers on x86-64 only")
