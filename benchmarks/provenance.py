"""Which sources a benchmark ran on."""

from __future__ import annotations

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]


def commit(folder: pathlib.Path = ROOT) -> str:
    """The commit of the working tree, and whether this folder is as it has it; "unknown" outside one."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", ".")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"
    return f"{head} with changes" if changed else head


def _git(folder: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
