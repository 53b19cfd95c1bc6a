"""The Python of a child process."""

from __future__ import annotations

import pathlib
import sys


def python() -> list[str]:
    """The command of a Python that imports the dhp_jax which runs here.

    ``python -m`` looks into the working directory first, which may be a checkout without compiled modules.
    """
    own = pathlib.Path(__file__).resolve().parents[2]
    stays_safe = sys.flags.safe_path or own != pathlib.Path.cwd().resolve()
    return [sys.executable, *(["-P"] if stays_safe else [])]
