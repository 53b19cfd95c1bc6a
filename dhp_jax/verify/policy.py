"""Which parameters of which kernels are secret or point to public data. Everything has its reason.

Where a policy says nothing: parameters are public, and whatever is read from memory is secret. A policy file is TOML::

    strict = true                       # a kernel that no entry names is UNKNOWN

    [[kernel]]
    name = "attention_fwd_*"            # the function's name, without namespace, templates and arguments
    parameter_bytes = [408]             # what the parameters take together; another layout is UNKNOWN
    reason = "ForwardParams: shapes, strides, options and addresses"
    [[kernel.secret]]                   # a part of a parameter whose value is secret
    parameter = 0
    offset = 16
    size = 8
    reason = "a sequence length by value"
    [[kernel.public_buffer]]            # a pointer to public data
    parameter = 1
    reason = "the page table"
    [kernel.public_constants]           # __constant__ variables hold public data
    reason = "rotary frequencies"
    [kernel.guarded_arithmetic]         # a secret may guard any arithmetic, also such as is faster when skipped
    reason = "a few cycles of a whole warp are out of our contract"
"""

from __future__ import annotations

import dataclasses
import fnmatch
import pathlib
import re
import tomllib
from typing import Any

from dhp_jax.verify.verdict import UnverifiableError


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel, as the cubin lays it out. `offset` and `size` are bytes."""

    index: int
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Part:
    """`size` bytes at `offset` of one parameter; size None is all from there on."""

    parameter: int
    reason: str
    offset: int = 0
    size: int | None = None

    def span(self, parameters: tuple[Parameter, ...]) -> range:
        """The bytes of the parameter block that it names."""
        for parameter in parameters:
            if parameter.index == self.parameter:
                size = parameter.size - self.offset if self.size is None else self.size
                if self.offset >= 0 and 0 < size <= parameter.size - self.offset:
                    return range(parameter.offset + self.offset, parameter.offset + self.offset + size)
        raise UnverifiableError(
            f"the policy names {self.size or 'all'} bytes at {self.offset} of parameter {self.parameter}, and the "
            f"parameters of the kernel have {[parameter.size for parameter in parameters]} bytes",
            "Parameters count from 0; name bytes that are there.",
        )


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is secret and public in one kernel.

    Attributes:
        name: pattern of kernel names.
        reason: why all else that is passed by value is public.
        secrets: parts of parameters whose value is secret.
        public_buffers: pointers to public data.
        public_constants: why __constant__ variables hold public data; empty where they are secret.
        guarded_arithmetic: why arithmetic that is faster when a whole warp skips it may have a secret guard; empty
            where it may not.
        parameter_bytes: what the parameters may take together; empty where it is not held.
    """

    name: str = "*"
    reason: str = "no policy was given: what is passed by value counts as public, all memory as secret"
    secrets: tuple[Part, ...] = ()
    public_buffers: tuple[Part, ...] = ()
    public_constants: str = ""
    guarded_arithmetic: str = ""
    parameter_bytes: tuple[int, ...] = ()

    def check(self, parameters: tuple[Parameter, ...]) -> None:
        """Raises UnverifiableError where the parameters of a kernel are not those that the policy was written for."""
        end = max((parameter.offset + parameter.size for parameter in parameters), default=0)
        if self.parameter_bytes and end not in self.parameter_bytes:
            raise UnverifiableError(
                f"the parameters take {end} bytes; the policy was written for {list(self.parameter_bytes)}",
                "Look at what was added, say what of it is secret, and correct parameter_bytes.",
            )
        for part in (*self.secrets, *self.public_buffers):
            part.span(parameters)

    def describe(self) -> str:
        """What counts as public or secret by this policy, and why."""
        said = [f"parameters: {self.reason}"]
        said += [
            f"secret, bytes {part.offset} on of parameter {part.parameter}: {part.reason}" for part in self.secrets
        ]
        said += [f"public buffer, parameter {part.parameter}: {part.reason}" for part in self.public_buffers]
        said += [f"public __constant__ variables: {self.public_constants}"] if self.public_constants else []
        said += [f"secret guards on arithmetic: {self.guarded_arithmetic}"] if self.guarded_arithmetic else []
        return "; ".join(said)


@dataclasses.dataclass(frozen=True)
class Policies:
    """A policy for each kernel. `strict`: a kernel without one may not pass."""

    entries: tuple[Policy, ...] = ()
    strict: bool = False

    def of(self, kernel: str) -> Policy:
        """The policy of a kernel, by its demangled name: of the first entry whose pattern fits."""
        name = function_name(kernel)
        for entry in self.entries:
            if fnmatch.fnmatchcase(name, entry.name):
                return entry
        if self.strict:
            raise UnverifiableError(
                f"no policy names the kernel {name}",
                "Add a [[kernel]] entry to the policy file that says what of its parameters is secret, and why.",
            )
        return Policy()


def function_name(kernel: str) -> str:
    """The bare name in a demangled signature: no return type, namespace, template arguments or parameters."""
    flat = kernel
    while flat != (flat := re.sub(r"<[^<>]*>|\([^()]*\)", "", flat)):
        pass
    return flat.split()[-1].split("::")[-1] if flat.split() else kernel


def read(path: pathlib.Path) -> Policies:
    """Reads a policy file; raises UnverifiableError where it says something that nobody would act on."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        _only(data, {"strict", "kernel"})
        return Policies(tuple(_entry(entry) for entry in data.get("kernel", [])), bool(data.get("strict", False)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UnverifiableError(
            f"the policy file {path} cannot be read: {error}", "verify/policy.py shows what one looks like."
        ) from None


def _entry(data: dict[str, Any]) -> Policy:
    tables = {"secret", "public_buffer", "public_constants", "guarded_arithmetic"}
    _only(data, {"name", "reason", "parameter_bytes"} | tables)
    return Policy(
        name=data["name"],
        reason=data["reason"],
        secrets=tuple(Part(**part) for part in data.get("secret", [])),
        public_buffers=tuple(Part(**part) for part in data.get("public_buffer", [])),
        public_constants=_reason(data.get("public_constants")),
        guarded_arithmetic=_reason(data.get("guarded_arithmetic")),
        parameter_bytes=tuple(data.get("parameter_bytes", [])),
    )


def _reason(table: dict[str, str] | None) -> str:
    """The one thing that such a table says; empty where there is none."""
    if table is None:
        return ""
    _only(table, {"reason"})
    if not table["reason"]:
        raise ValueError("an empty reason")
    return table["reason"]


def _only(data: dict[str, Any], known: set[str]) -> None:
    if unknown := set(data) - known:
        raise ValueError(f"unknown keys {sorted(unknown)}; known are {sorted(known)}")
