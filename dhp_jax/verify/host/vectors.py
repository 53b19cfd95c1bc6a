"""Moves of whole 8-byte pieces within and between vector registers, where compilers keep pointers too."""

from __future__ import annotations

from collections.abc import Callable

from dhp_jax.verify.host.state import Lanes, State, lanes, read
from dhp_jax.verify.host.values import Value
from dhp_jax.verify.host.x86 import Instruction, Kind, Register

_COPIES = ["MOVAPS", "MOVUPS", "MOVAPD", "MOVUPD", "MOVDQA", "MOVDQU", "LDDQU"]
_COPIES += ["MOVDQA32", "MOVDQA64", "MOVDQU8", "MOVDQU16", "MOVDQU32", "MOVDQU64"]
_INSERTS = [f"INSERT{kind}{part}" for kind in "FI" for part in ("128", "32X4", "64X2", "32X8", "64X4")] + ["PINSRQ"]
_EXTRACTS = [name.replace("INSERT", "EXTRACT").replace("PINSR", "PEXTR") for name in _INSERTS]


class _Sources:
    """The inputs of an instruction, in order, as pieces of 8 bytes; an SSE target that is an input comes first."""

    def __init__(self, instruction: Instruction, state: State, loaded: Lanes):
        self.target = instruction.operands[0]
        self.immediate = instruction.immediate or 0
        self.inputs: list[Lanes] = []
        is_avx = instruction.name.startswith("V")
        for position, operand in enumerate(instruction.operands):
            if operand is not None and (position > 0 or not is_avx):
                self.inputs.append(_pieces(operand, state))
        if loaded:
            self.inputs.append(loaded)
        self.count = self.target.size // 8 if self.target is not None else instruction.memory[0].size // 8


def _pieces(register: Register, state: State) -> Lanes:
    return lanes(register, state) if register.kind is Kind.VECTOR else (read(register, state),)


def _copy(s: _Sources) -> Lanes:
    return s.inputs[-1][: s.count]


def _move_quad(s: _Sources) -> Lanes:
    return (s.inputs[-1][0],)


def _insert(s: _Sources) -> Lanes:
    into, part = s.inputs[0], s.inputs[-1]
    start = s.immediate * len(part) % len(into)
    return into[:start] + part + into[start + len(part) :]


def _extract(s: _Sources) -> Lanes:
    source = s.inputs[-1]
    start = s.immediate * s.count % len(source)
    return source[start : start + s.count]


def _unpack(which: int) -> Callable[[_Sources], Lanes]:
    def unpack(s: _Sources) -> Lanes:
        a, b = s.inputs[0], s.inputs[-1]
        pieces: list[Value] = []
        for start in range(0, s.count, 2):
            pieces += [a[start + which], b[start + which]]
        return tuple(pieces)

    return unpack


def _move_high(s: _Sources) -> Lanes:
    if s.target is None:
        return (s.inputs[0][1],)
    return (s.inputs[0][0], s.inputs[-1][0])


def _move_low(s: _Sources) -> Lanes:
    if s.target is None:
        return (s.inputs[0][0],)
    return (s.inputs[-1][0], s.inputs[0][1])


def _high_to_low(s: _Sources) -> Lanes:
    return (s.inputs[-1][1], s.inputs[0][1])


def _broadcast(s: _Sources) -> Lanes:
    return (s.inputs[-1][0],) * s.count


_MOVES: dict[str, Callable[[_Sources], Lanes]] = {
    **dict.fromkeys(_COPIES, _copy),
    **dict.fromkeys(_INSERTS, _insert),
    **dict.fromkeys(_EXTRACTS, _extract),
    "MOVQ": _move_quad,
    "PUNPCKLQDQ": _unpack(0),
    "PUNPCKHQDQ": _unpack(1),
    "UNPCKLPD": _unpack(0),
    "UNPCKHPD": _unpack(1),
    "MOVHPS": _move_high,
    "MOVHPD": _move_high,
    "MOVLHPS": _move_high,
    "MOVLPS": _move_low,
    "MOVLPD": _move_low,
    "MOVHLPS": _high_to_low,
    "PBROADCASTQ": _broadcast,
}


def moved_pieces(instruction: Instruction, state: State, loaded: Lanes) -> Lanes | None:
    """What an instruction writes to its first operand, in pieces of 8 bytes; None: it is no move of such pieces.

    Args:
      instruction: one without a governing mask.
      state: the state before it.
      loaded: what it loads from memory.
    """
    move = _MOVES.get(instruction.name.removeprefix("V"))
    if move is None or not instruction.operands:
        return None
    return move(_Sources(instruction, state, loaded))
