"""Where a computed address points: which public buffer, if any, it was derived from.

A value derived from a pointer by adding and by choosing still points into the same buffer, since the program is memory
safe. Both words of a 64-bit pointer carry the mark. What else is done with a pointer (it is subtracted, multiplied,
shifted, added to another) gives a MIXED value, which is trusted nowhere: a difference of two pointers plus a third is
an address in the wrong buffer.
"""

from __future__ import annotations

from dhp_jax.verify.instruction import Instruction, Operand
from dhp_jax.verify.value import MIXED, Value, either_pointer

_SUMS = ("IADD3", "UIADD3", "VIADD")
_PRODUCTS = ("IMAD", "UIMAD")
_SHIFTED_SUMS = ("LEA", "ULEA")
_CHOICES = ("SEL", "USEL")

Sources = list[tuple[Operand, Value]]


def copied(instruction: Instruction, sources: Sources) -> Value | None:
    """The value that an instruction only copies; None where it computes."""
    if instruction.opcode in ("MOV", "UMOV", "R2UR", "BMOV", "LDC", "ULDC"):
        operand, value = sources[0]
        return None if operand.negated else value
    if instruction.opcode in _PRODUCTS and not {"WIDE", "HI", "X"} & set(instruction.modifiers):
        (a, _), (b, _), (addend, value) = sources[:3]
        if {a.name, b.name} <= {"RZ", "URZ"} and not addend.negated:
            return value
    return None


def derived(instruction: Instruction, sources: Sources) -> frozenset[str] | None:
    """What the result of a computation points into."""
    if all(value.pointer is None for _, value in sources):
        return None
    if instruction.opcode in _CHOICES:
        return either_pointer(sources[0][1].pointer, sources[1][1].pointer)
    terms = _terms(instruction, len(sources))
    pointers = [(position, source) for position, source in enumerate(sources) if source[1].pointer is not None]
    if len(pointers) == 1 and pointers[0][0] in terms and not pointers[0][1][0].negated:
        return pointers[0][1][1].pointer
    return MIXED


def _terms(instruction: Instruction, count: int) -> set[int]:
    """Positions of the sources that are added as they are."""
    if instruction.opcode in _SUMS:
        return set(range(count))
    if instruction.opcode in _PRODUCTS:
        return {0, 2} if "IADD" in instruction.modifiers else {2}
    if instruction.opcode in _SHIFTED_SUMS:
        return {1}
    return set()


def addressed(terms: list[list[Value]]) -> frozenset[str] | None:
    """What an address points into: a sum of terms, each of one or two words, which must agree."""
    found: list[frozenset[str]] = []
    for words in terms:
        pointers = {word.pointer for word in words}
        if len(pointers) > 1:
            return MIXED
        found += [pointer for pointer in pointers if pointer is not None]
    if not found:
        return None
    return found[0] if len(found) == 1 else MIXED
