"""The CUDA compiler that tests compile with, and where they keep what it made."""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BUILT = ROOT / "build" / "leaky"  # kept from run to run

_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_NEEDED = "no nvcc of CUDA 13: put one on the PATH, set CUDACXX, or install nvidia-cuda-nvcc==13.0.88"


def compiled(name, sources, flags, launcher=()):
    """Path of what nvcc makes with these flags, BUILT / name but for a hash of all that it is made from.

    Skips the test where there is no nvcc.

    Args:
        name: such as "alu.sm_80.cubin".
        sources: the file to compile first, then all that it includes.
        flags: for nvcc.
        launcher: command in front of nvcc's.
    """
    nvcc = _find()
    if nvcc is None:
        cannot_run(_NEEDED)
    digest = hashlib.sha256(repr((_version(nvcc), flags)).encode())
    for source in (*sources, *launcher[1:]):
        digest.update(source.read_bytes())
    stem, _, suffix = name.rpartition(".")
    built = BUILT / f"{stem}.{digest.hexdigest()[:16]}.{suffix}"
    if not built.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        unfinished = built.with_suffix(f".{os.getpid()}")
        command = [*launcher, nvcc, *flags, sources[0], "-o", unfinished]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{sources[0]} does not compile as {name}: {done.stderr}")
        unfinished.rename(built)
    return built


def kept(name, data):
    """Path of BUILT / name, which holds these bytes in one piece."""
    BUILT.mkdir(parents=True, exist_ok=True)
    unfinished = BUILT / f"{name}.{os.getpid()}"
    unfinished.write_bytes(data)
    return unfinished.rename(BUILT / name)


def included(source, folder):
    """All that a file includes from a folder, directly or not: only what it sees has it compiled again."""
    found = [source]
    for file in found:  # which grows
        for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
            if (folder / name).is_file() and folder / name not in found:
                found.append(folder / name)
    return found[1:]


@contextlib.contextmanager
def alone(work):
    """Workers of one test run take turns: the second finds done what the first did."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / f"{work}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cannot_run(reason):
    """In CI a missing tool is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def _find():
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc"), shutil.which("/usr/local/cuda/bin/nvcc")]
    wheels = importlib.util.find_spec("nvidia")
    for folder in wheels.submodule_search_locations if wheels else ():
        candidates.append(shutil.which(pathlib.Path(folder, "cu13", "bin", "nvcc")))
    return next((nvcc for nvcc in candidates if nvcc and "release 13." in _version(nvcc)), None)


@functools.cache
def _version(nvcc):
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
