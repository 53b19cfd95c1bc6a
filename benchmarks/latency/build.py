"""Compiles the program and holds every kernel in it against its case."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess

from latency import sass
from provenance import commit

SOURCES = pathlib.Path(__file__).parent
ARCHITECTURE = "-gencode=arch=compute_90a,code=sm_90a"
_COMPILE = [ARCHITECTURE, "-O3", "-std=c++20", "-c"]
_LINK = [ARCHITECTURE, "-cudart=static", "-Xcompiler=-static-libstdc++,-static-libgcc"]
_SLOWEST_FIRST = ("alu.cu", "queued.cu")


def build(folder: pathlib.Path) -> pathlib.Path:
    """Compiles the program into a folder, checks it, and leaves manifest.json beside it.

    Raises:
        sass.VoidProbeError: some kernel does not time what its case says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cc")], key=lambda path: path.name not in _SLOWEST_FIRST)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, folder), sources))
    program = folder / "latency"
    _run("nvcc", *_LINK, *map(str, objects), "-o", str(program))
    checked(program)
    return program


def manifest(program: pathlib.Path) -> dict[str, object]:
    """What the program is, and the opcodes in the timed loop of each of its kernels; all of them were checked."""
    kernels = sass.disassemble(program)
    problems, loops = [], {}
    for case in cases(program):
        try:
            loops[str(case["kernel"])] = sass.check(case, kernels).histogram()
        except sass.VoidProbeError as problem:
            problems.append(str(problem))
    if problems:
        raise sass.VoidProbeError("\n".join(problems))
    return {
        "sha256": digest([program]),
        "sources_sha256": source_digest(),
        "commit": commit(SOURCES),
        "nvcc": _run("nvcc", "--version").strip().splitlines()[-2],
        "loops": loops,
    }


def checked(program: pathlib.Path) -> dict[str, object]:
    """The manifest beside a program; where there is none for exactly these bytes, the program is checked now."""
    path = program.with_name("manifest.json")
    if path.exists():
        known = json.loads(path.read_text())
        if known["sha256"] == digest([program]):
            return known
    new = manifest(program)
    path.write_text(json.dumps(new, indent=1) + "\n")
    return new


def cases(program: pathlib.Path) -> list[dict[str, object]]:
    """The cases, as the program lists them."""
    return [json.loads(line) for line in _run(str(program), "--list").splitlines()]


def source_digest() -> str:
    """One hash over all C++ sources."""
    return digest(sorted(path for path in SOURCES.iterdir() if re.fullmatch(r"\.(cu|cuh|cc|h)", path.suffix)))


def digest(paths: list[pathlib.Path]) -> str:
    """SHA-256 over the bytes of files, one after the other."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _compile(source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    target = folder / f"{source.stem}.o"
    _run("nvcc", *_COMPILE, str(source), "-o", str(target))
    return target


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{command[0]} was not found; nvcc comes with the CUDA toolkit, the program with run.py --build-only"
        ) from None
    except subprocess.CalledProcessError as problem:
        raise RuntimeError(f"{' '.join(command)} ended with {problem.returncode}:\n{problem.stderr}") from None
