"""Keeps reports by what they depend on: the bytes of the cubin, the policies, the analyser itself and nvdisasm."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Self

from dhp_jax.verify import disassembly
from dhp_jax.verify.policy import Policies
from dhp_jax.verify.report import KernelReport, from_json, to_json


class Cache:
    """A folder of reports. Whoever can write there can forge a verdict: `make verify` believes none of it."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._analyser = _hash_of_analyser()

    @classmethod
    def of_user(cls) -> Self:
        """The cache in the user's home."""
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        return cls(pathlib.Path(base, "dhp_jax", "verify"))

    def find(self, data: bytes, policies: Policies) -> list[KernelReport] | None:
        """The reports on a cubin; None where it was never judged."""
        try:
            kept = json.loads(self._path(data, policies).read_text(encoding="utf-8"))
            return [from_json(report) for report in kept]
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, data: bytes, policies: Policies, reports: list[KernelReport]) -> None:
        """Writes down the reports on a cubin, in one piece or not at all."""
        path = self._path(data, policies)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps([to_json(report) for report in reports]), encoding="utf-8")
            unfinished.replace(path)
        except OSError:
            return  # a cache that cannot be written is no reason to fail

    def _path(self, data: bytes, policies: Policies) -> pathlib.Path:
        key = hashlib.sha256(self._analyser)
        key.update(repr(policies).encode())
        key.update(data)
        return self._folder / f"{key.hexdigest()}.json"


class Fresh(Cache):
    """The same for who wants every verdict anew, and keeps them for others."""

    def find(self, data: bytes, policies: Policies) -> list[KernelReport] | None:
        """None: what was judged before does not count."""
        return None


def _hash_of_analyser() -> bytes:
    """Any change of any file of the analyser makes all that it said before worthless."""
    key = hashlib.sha256(disassembly.version().encode())
    root = pathlib.Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        key.update(str(path.relative_to(root)).encode())
        key.update(path.read_bytes())
    return key.digest()
