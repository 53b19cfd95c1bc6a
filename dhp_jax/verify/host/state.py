"""The registers and the stack at one point of a program, as far as the machine-code check knows them."""

from __future__ import annotations

from dhp_jax.verify.host.values import PUBLIC, SECRET, STACK, Value, combine, join, pointer
from dhp_jax.verify.host.x86 import Kind, Register

NUM_LANES = 8  # of 64 bits in a vector register
RSP = 4
_DIRECTION_FLAG = 0x40  # in the numbering of iced-x86; clear wherever a function begins or returns
UNKNOWN_FLAGS = 0xFFFF & ~_DIRECTION_FLAG

Lanes = tuple[Value, ...]
Place = tuple[str, int]  # region and offset
SECRET_LANES: Lanes = (SECRET,) * NUM_LANES


class State:
    """Registers, flags and the public part of the stack.

    Attributes:
      general: value of each general-purpose register.
      vectors: values of the eight lanes of each vector register.
      masks: whether each AVX-512 mask register is secret.
      secret_flags: bits of the flags that are secret.
      stack: (region, offset) -> value of the byte there; all eight bytes of a pointer hold it. A byte that is not
        listed is secret: nothing was written there, or a secret.
      pushed: (region, offset) -> value that was pushed there. Pushed registers are no part of any array, so that an
        indexed write does not reach them.
      frames: (region, offset) of the return address of each call under way; the frame of a function lies below its own.
    """

    __slots__ = ("frames", "general", "masks", "pushed", "secret_flags", "stack", "vectors")

    def __init__(self) -> None:
        """What a function finds: everything secret but the stack pointer."""
        self.general: list[Value] = [SECRET] * 16
        self.vectors: list[Lanes] = [SECRET_LANES] * 32
        self.masks: list[bool] = [True] * 8
        self.secret_flags = UNKNOWN_FLAGS
        self.stack: dict[Place, Value] = {}
        self.pushed: dict[Place, Value] = {}
        self.general[RSP] = pointer(STACK)
        self.frames: tuple[Place, ...] = ((STACK, 0),)

    def copy(self) -> State:
        """A state that may be changed on its own."""
        other = State.__new__(State)
        other.general = self.general.copy()
        other.vectors = self.vectors.copy()
        other.masks = self.masks.copy()
        other.secret_flags = self.secret_flags
        other.stack = self.stack.copy()
        other.pushed = self.pushed.copy()
        other.frames = self.frames
        return other

    def join(self, other: State) -> bool:
        """Forgets what `other` does not know; returns whether anything was forgotten."""
        changed = False
        for i, (a, b) in enumerate(zip(self.general, other.general, strict=True)):
            if a is not b and a != b:
                self.general[i] = join(a, b)
                changed |= self.general[i] != a
        for i, (x, y) in enumerate(zip(self.vectors, other.vectors, strict=True)):
            if x is not y and x != y:
                self.vectors[i] = tuple(map(join, x, y))
                changed |= self.vectors[i] != x
        for i, secret in enumerate(other.masks):
            if secret and not self.masks[i]:
                self.masks[i] = changed = True
        if other.secret_flags & ~self.secret_flags:
            self.secret_flags |= other.secret_flags
            changed = True
        changed |= _join_places(self.stack, other.stack)
        changed |= _join_places(self.pushed, other.pushed)
        return changed

    def read_stack(self, region: str, offset: int, size: int) -> Value:
        """The value of up to 8 bytes at one place."""
        if size == 8 and (region, offset) in self.pushed:
            return self.pushed[region, offset]
        get = self.stack.get
        parts = {get((region, place), SECRET) for place in range(offset, offset + size)}
        if len(parts) == 1 and size == 8 and offset % 8 == 0:
            return parts.pop()
        return combine(parts)

    def write_stack(self, region: str, offset: int, size: int, value: Value) -> None:
        """Writes up to 8 bytes to one place."""
        for start in range(offset - 7, offset + size):
            self.pushed.pop((region, start), None)
        if size < 8 or offset % 8:
            value = combine((value,))  # a piece of a pointer is not followed
        for place in range(offset, offset + size):
            if value.secret:
                self.stack.pop((region, place), None)
            else:
                self.stack[region, place] = value

    def forget_stack(self, region: str, lowest: int | None) -> None:
        """After a write to an unknown place at or after `lowest` in the same frame: nothing there is known any more."""
        end = min((o for r, o in self.frames if r == region and lowest is not None and o >= lowest), default=None)
        for key in [k for k in self.stack if k[0] == region]:
            if (lowest is None or key[1] >= lowest) and (end is None or key[1] < end):
                del self.stack[key]

    def drop_frame(self, region: str, end: int) -> None:
        """After a return: what lies below `end` is free, and so are the regions that the callee aligned."""
        for places in (self.stack, self.pushed):
            for key in [k for k in places if (k[0] == region and k[1] < end) or k[0].startswith(region + "/")]:
                del places[key]


def lanes(register: Register, state: State) -> Lanes:
    """The values of a vector register, or of its low part, in pieces of 8 bytes."""
    return state.vectors[register.index][: max(1, register.size // 8)]


def read(register: Register, state: State) -> Value:
    """The value of a register, or of its low part."""
    if register.kind is Kind.GENERAL:
        value = state.general[register.index]
        return value if register.size == 8 else combine((value,))
    if register.kind is Kind.VECTOR:
        return combine(lanes(register, state))
    if register.kind is Kind.MASK:
        return SECRET if state.masks[register.index] else PUBLIC
    return SECRET


def write(register: Register, state: State, value: Value) -> None:
    """Writes one value to all of a register."""
    if register.kind is Kind.GENERAL:
        state.general[register.index] = value
    elif register.kind is Kind.VECTOR:
        count = max(1, register.size // 8)
        state.vectors[register.index] = (value,) * count + state.vectors[register.index][count:]
    elif register.kind is Kind.MASK:
        state.masks[register.index] = value.secret


def _join_places(mine: dict[Place, Value], other: dict[Place, Value]) -> bool:
    changed = False
    for key, value in list(mine.items()):
        there = other.get(key, SECRET)
        if value is there or value == there:
            continue
        joined = join(value, there)
        if joined.secret:
            del mine[key]
        else:
            mine[key] = joined
        changed |= joined != value
    return changed
