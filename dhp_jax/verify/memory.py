"""What a load may bring, by space.

* Constant bank 0 holds the launch configuration and the parameters: public, but for what the policy calls secret. Banks
  2 and 4 hold what the compiler put there. Bank 3 holds __constant__ variables, which the host writes: secret, unless
  the policy says otherwise.
* Global memory is secret, unless the address is a pointer that the policy calls public plus public offsets, and the
  kernel itself stores no secret through such a pointer.
* Shared memory is secret, whoever wrote it: copies run beside the code, and other blocks write too.
* Local memory is as secret as what the kernel stores there. It is written before it is read, or the program is broken.

Assumed: memory safety, and that no secret buffer overlaps a public one.
"""

from __future__ import annotations

import dataclasses

from dhp_jax.verify.cubin import Kernel
from dhp_jax.verify.instruction import Instruction, Operand
from dhp_jax.verify.policy import Policy
from dhp_jax.verify.value import MIXED, PUBLIC, Step, Value, originating
from dhp_jax.verify.verdict import UnverifiableError

PARAMETERS = "parameters"  # pointer region: constant bank 0, by its generic address
SHARED = "shared memory"
_LOCAL = "local memory"
_REDUCTION = "barrier reduction"

# Where constant bank 0 holds its own generic address, by architecture; tensor maps are found through it.
_WINDOW = {"sm_90": range(0x198, 0x1A0), "sm_90a": range(0x198, 0x1A0)}


class Memory:
    """The memory of one kernel under one policy. Grows more secret while the analysis runs, never less."""

    def __init__(self, kernel: Kernel, policy: Policy):
        base = kernel.parameter_base
        self._secret = [_shifted(part.span(kernel.parameters), base) for part in policy.secrets]
        self._buffers = [_shifted(part.span(kernel.parameters), base) for part in policy.public_buffers]
        self._window = _WINDOW.get(kernel.architecture, range(0))
        self._base = base
        self._public_constants = bool(policy.public_constants)
        self._stored: dict[str, Step] = {}  # region -> the first secret stored there
        self.shared: Step | None = None  # the first secret that the code itself stores to shared memory
        self._exchanged: dict[tuple[int, int], Step] = {}  # (instruction, operand) -> the first secret that was there

    @property
    def known(self) -> int:
        """How much is known to be secret here: when it grows, all code must be looked at again."""
        return len(self._stored) + len(self._exchanged)

    def constant(self, instruction: Instruction, operand: Operand, words: int) -> Value:
        """What c[bank][offset] holds."""
        if operand.bank in (2, 4):
            return PUBLIC
        if operand.bank == 3:
            variable = _secret(instruction, "a __constant__ variable")
            return originating("constant") if self._public_constants else variable
        if operand.bank != 0:
            raise UnverifiableError(
                f"{instruction.address:#06x}: constant bank {operand.bank} in {instruction.text!r} is unknown",
                "Teach verify/memory.py what lies there.",
            )
        if operand.inner and operand.inner[0].name not in ("RZ", "URZ"):
            return _secret(instruction, "a parameter that the policy calls secret") if self._secret else PUBLIC
        offset = operand.value or 0
        return self._parameter(instruction, range(offset, offset + 4 * words))

    def _parameter(self, instruction: Instruction, span: range) -> Value:
        if any(_overlap(span, secret) for secret in self._secret):
            return _secret(instruction, "a parameter that the policy calls secret")
        for buffer in self._buffers:
            if _overlap(span, buffer):
                inside = buffer.start <= span.start and span.stop <= buffer.stop
                return Value(pointer=frozenset({f"buffer {buffer.start:#x}"}) if inside else MIXED)
        if _overlap(span, self._window):
            return Value(pointer=frozenset({PARAMETERS}))
        return originating("parameter" if span.start >= self._base else "launch")

    def load(self, instruction: Instruction, pointer: frozenset[str] | None) -> Value:
        """What a load from global, shared or local memory brings.

        Args:
            instruction: the load.
            pointer: what its address points into.
        """
        match instruction.opcode:
            case "LDL":
                return Value(self._stored.get(_LOCAL))
            case "LDS" | "LDSM":
                return _secret(instruction, SHARED)
        if pointer == frozenset({PARAMETERS}):
            return _secret(instruction, "a parameter that the policy calls secret") if self._secret else PUBLIC
        if self.is_public(pointer):
            return originating("public buffer")
        stored = [self._stored[region] for region in sorted(pointer or ()) if region in self._stored]
        return Value(stored[0]) if stored else _secret(instruction, "memory")

    def is_public(self, pointer: frozenset[str] | None) -> bool:
        """Whether all that lies behind a pointer is public."""
        return pointer is not None and pointer != MIXED and not pointer & set(self._stored)

    def store(self, instruction: Instruction, pointer: frozenset[str] | None, secret: Step) -> None:
        """Takes note of a secret that is stored."""
        if instruction.opcode in ("STS", "STSM"):
            self.shared = self.shared or Step(instruction, SHARED, "stored", secret)
            return
        regions = set(pointer or ())
        if regions == MIXED:
            regions = {f"buffer {buffer.start:#x}" for buffer in self._buffers}
        if instruction.opcode in ("STL", "ST"):
            regions.add(_LOCAL)
        for region in regions:
            self._stored.setdefault(region, Step(instruction, region, "stored", secret))

    def exchange(self, instruction: Instruction, operand: int, value: Value) -> Value:
        """What an instruction that moves data between lanes can find in an operand, whichever way the lanes came."""
        key = (instruction.address, operand)
        if value.secret is not None:
            self._exchanged.setdefault(key, value.secret)
        return dataclasses.replace(value, secret=value.secret or self._exchanged.get(key))

    def reduce(self, instruction: Instruction, value: Value) -> None:
        """Takes note of what a thread brings to a reduction at a barrier: threads meet there from anywhere."""
        if value.secret is not None:
            self._stored.setdefault(_REDUCTION, Step(instruction, _REDUCTION, "brought", value.secret))

    def reduced(self) -> Value:
        """What reductions at barriers return."""
        return Value(self._stored.get(_REDUCTION))


def _secret(instruction: Instruction, source: str) -> Value:
    return Value(Step(instruction, "", source))


def _shifted(span: range, base: int) -> range:
    return range(span.start + base, span.stop + base)


def _overlap(a: range, b: range) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)
