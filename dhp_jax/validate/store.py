"""The results folder: one file for each part, so that a run that was killed goes on where it stopped.

A file is written under another name and then renamed: one that is there is whole. It counts only for the same identity,
the bytes of this package and its libraries, the versions, the GPU and the options that change what a part does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dhp_jax.validate import machine, outcome
from dhp_jax.validate.outcome import Check
from dhp_jax.verify import UnverifiableError
from dhp_jax.verify.__main__ import LIBRARY, installed_library

_PACKAGE = pathlib.Path(__file__).parent.parent
_CODE = (".py", ".so", ".toml", ".xml", ".dylib")
_VERSIONS = ("jax", "jaxlib", "jax-cuda13-plugin", "numpy")


def identity(quick: bool) -> str:
    """A hash of all that a result depends on."""
    digest = hashlib.sha256(repr((quick, _versions(), sorted(machine.identity().items()))).encode())
    for path in sorted({*(path for path in _PACKAGE.rglob("*") if path.suffix in _CODE), *_libraries()}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _libraries() -> Iterator[pathlib.Path]:
    """Compiled files, which an editable installation keeps elsewhere."""
    for name in ("_native", LIBRARY, "libdhp_controls"):
        with contextlib.suppress(UnverifiableError):
            yield installed_library(name)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


class Store:
    """What the parts of one run said."""

    def __init__(self, folder: pathlib.Path, identity: str):
        self.folder = folder
        self.identity = identity
        self._parts = folder / "parts"
        self._parts.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Forgets all results."""
        for path in [*self._parts.glob("*.json"), self._mark]:
            path.unlink(missing_ok=True)

    def forget(self, parts: Iterable[str]) -> None:
        """Forgets the results of these parts."""
        for part in parts:
            self._path(part).unlink(missing_ok=True)

    def begin(self, part: str) -> None:
        """Notes that a part has begun, so that whoever finds the process dead knows what it was at."""
        self._mark.write_text(json.dumps({"part": part, "begun": time.time()}))

    def begun(self) -> str | None:
        """The part that has begun and not ended; None where there is none."""
        return str(json.loads(self._mark.read_text())["part"]) if self._mark.exists() else None

    def begun_at(self) -> float:
        """When it began, in seconds since the epoch; now where there is none."""
        return float(json.loads(self._mark.read_text())["begun"]) if self._mark.exists() else time.time()

    def keep(self, part: str, checks: Sequence[Check], seconds: float) -> None:
        """Writes what a part said, and takes the mark of begin away."""
        told = {"identity": self.identity, "part": part, "seconds": round(seconds, 2)}
        self._write(self._path(part), {**told, "checks": [outcome.to_json(check) for check in checks]})
        self._mark.unlink(missing_ok=True)

    def find(self, part: str) -> list[Check] | None:
        """What a part said; None where it did not end, or ended for another identity."""
        told = self._read(part)
        return None if told is None else [outcome.from_json(check) for check in told["checks"]]

    def seconds(self, part: str) -> float:
        """How long a part took; 0 where it did not end."""
        told = self._read(part)
        return 0.0 if told is None else float(told["seconds"])

    @property
    def _mark(self) -> pathlib.Path:
        return self._parts / "begun"

    def _path(self, part: str) -> pathlib.Path:
        return self._parts / (re.sub(r"\W+", "_", part) + ".json")

    def _read(self, part: str) -> dict[str, Any] | None:
        try:
            told = json.loads(self._path(part).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return told if told.get("identity") == self.identity and told.get("part") == part else None

    def _write(self, path: pathlib.Path, data: dict[str, Any]) -> None:
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
