"""Where and with what a benchmark ran: sources, versions, GPU and clocks."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import pathlib
import subprocess
from collections.abc import Iterator
from typing import Any

import dhp_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]

_PACKAGES = ("jax", "jaxlib", "numpy", "torch", "nvidia-cudnn-cu13", "tokamax", "flash-attn-4")


def commit(folder: pathlib.Path = ROOT) -> str:
    """The commit of the working tree, and whether this folder is as it has it; "unknown" outside one."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", ".")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"
    return f"{head} with changes" if changed else head


def versions() -> dict[str, str]:
    """Date, commit, and the versions of what is installed."""
    found = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit()}
    found["dhp_jax"] = dhp_jax.__version__
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, Any]]:
    """Versions and GPU; when the body ends, also its clocks and temperature meanwhile, by `machine.clocks`."""
    from dhp_jax.validate import machine

    told: dict[str, Any] = {**versions(), **machine.facts()}
    with machine.clocks() as clocks:
        yield told
    told["clocks"] = clocks


def _git(folder: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
