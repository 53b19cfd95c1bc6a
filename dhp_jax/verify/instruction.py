"""One line of SASS, as nvdisasm writes it, into an Instruction. What is not understood makes the kernel UNKNOWN.

An instruction reads ``[@[!]guard] OPCODE[.MODIFIER...] operand, operand ... ;``. The operands are taken apart as far as
registers, numbers and memory references; what an operand is for is the business of opcodes.py.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Iterator

from dhp_jax.verify.verdict import UnverifiableError

SIZE = 16  # bytes of one instruction, on every architecture from sm_70 on


class Kind(enum.Enum):
    """The sorts of operands."""

    REGISTER = "register"  # R0 ... R254, RZ; UR0 ... UR62, URZ
    PREDICATE = "predicate"  # P0 ... P6, PT; UP0 ... UP6, UPT
    IMMEDIATE = "immediate"
    CONSTANT = "constant"  # c[bank][offset], c[bank][register + offset]
    BINDLESS = "bindless"  # cx[UR4][offset]: the bank is in a uniform register
    ADDRESS = "address"  # [register + uniform register + offset], desc[UR][...]
    DESCRIPTOR = "descriptor"  # desc[UR4] alone: how a copy treats the caches
    MATRIX = "matrix"  # gdesc[UR]: descriptors of matrices in shared memory
    SPECIAL = "special"  # SR_TID.X, SRZ
    BARRIER = "barrier"  # B0 ... B15: where diverged threads meet again
    SCOREBOARD = "scoreboard"  # SB0, gsb0, {5,4}
    PREDICATES = "predicates"  # PR, UPR: all seven at once
    LABEL = "label"  # `(.L_x_1)


@dataclasses.dataclass(frozen=True)
class Operand:
    """One operand.

    Attributes:
        kind: what it is.
        text: as written.
        name: of the register, predicate, label, special register or barrier itself.
        suffixes: what follows the name, without ".reuse": "64", "H0_H0", "tnspB".
        negated: "!" before a predicate, "-" or "~" before a value.
        value: of an immediate (None for a float); the offset of a constant or an address.
        bank: of a constant.
        inner: the registers inside the brackets, in order; of a descriptor, its register comes first.
        has_descriptor: whether inner[0] is the descriptor of an address.
    """

    kind: Kind
    text: str
    name: str = ""
    suffixes: tuple[str, ...] = ()
    negated: bool = False
    value: int | None = None
    bank: int = -1
    inner: tuple[Operand, ...] = ()
    has_descriptor: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction.

    Attributes:
        address: offset in its section.
        guard: the predicate under which it takes effect, None where always.
        opcode: without modifiers.
        modifiers: in order.
        operands: in order.
        targets: labels that nvdisasm says an indirect branch can reach.
        text: as written, without the address.
        hidden: registers of its last address that the text does not show (liveness.py finds them).
    """

    address: int
    guard: Operand | None
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    targets: tuple[str, ...]
    text: str
    hidden: tuple[str, ...] = ()

    @property
    def never(self) -> bool:
        """Whether the guard is constant false: ptxas fills with such instructions."""
        return self.guard is not None and self.guard.name in ("PT", "UPT") and self.guard.negated

    @property
    def address_operands(self) -> list[Operand]:
        """The operands that are addresses."""
        return [operand for operand in self.operands if operand.kind is Kind.ADDRESS]

    @property
    def guarded(self) -> bool:
        """Whether a predicate decides at run time."""
        return self.guard is not None and self.guard.name not in ("PT", "UPT")


_NUMBER = r"-?(?:0x[0-9a-f]+|0|[1-9]\d*)"
_UNIFORM = r"UR(?:\d+|Z)"
_ANY_REGISTER = r"U?R(?:\d+|Z)"
_SUFFIXES = r"(?P<suffixes>(?:\.\w+)*)"
_TERM = rf"(?:{_ANY_REGISTER}(?:\.\w+)*|{_NUMBER})"
_INSTRUCTION = re.compile(
    r"(?:@(?P<guard>!?U?P(?:\d|T))\s+)?(?P<opcode>[A-Z][A-Z0-9_]*)(?P<modifiers>(?:\.\w+)*)(?:\s+(?P<operands>\S.*?))?\s*"
)
_COMMENT = re.compile(r'\(\*"(?:BRANCH_TARGETS (?P<targets>[^"]*)|SpillRefill)"\*\)')
_REGISTER = re.compile(rf"(?P<sign>[-~+]?)\|?(?P<name>{_ANY_REGISTER}){_SUFFIXES}\|?(?P<more>(?:\.\w+)*)")
_PREDICATE = re.compile(r"(?P<sign>!?)(?P<name>U?P(?:\d|T))")
_CONSTANT = re.compile(
    rf"(?P<sign>[-~]?)\|?c\[(?P<bank>0x[0-9a-f]+)\]\[(?:(?P<index>{_ANY_REGISTER})\+?)?(?P<offset>{_NUMBER})?\]\|?{_SUFFIXES}"
)
_BINDLESS = re.compile(rf"[-~]?\|?cx\[(?P<bank>{_UNIFORM})\]\[{_NUMBER}\]\|?{_SUFFIXES}")
_ADDRESS = re.compile(rf"(?:desc\[(?P<descriptor>{_UNIFORM})\])?\[(?P<inside>{_TERM}(?:\+{_TERM})*)\]")
_DESCRIPTOR = re.compile(rf"desc\[(?P<name>{_UNIFORM})\]")
_MATRIX = re.compile(rf"gdesc\[(?P<name>{_UNIFORM})\]{_SUFFIXES}")
_SIMPLE = (
    (Kind.BARRIER, re.compile(r"B\d+")),
    (Kind.SCOREBOARD, re.compile(r"SB\d|gsb\d|\{\d(?:,\d)*\}")),
    (Kind.PREDICATES, re.compile(r"U?PR")),
    (Kind.SPECIAL, re.compile(r"SR[A-Z_][A-Za-z0-9_.]*")),
)
_LABEL = re.compile(r"`\((?P<name>[^()`]+)\)")
_FLOAT = re.compile(r"[-+]?(?:\d+(?:\.\d+)?(?:e[-+]\d+)?|INF|[QS]NAN)")


def parse(address: int, text: str) -> Instruction:
    """Reads one instruction; `text` has no address and no closing semicolon."""
    comment = _COMMENT.search(text)
    targets = tuple((comment["targets"] or "").split(",")) if comment and comment["targets"] else ()
    match = _INSTRUCTION.fullmatch(_COMMENT.sub("", text).strip())
    if not match:
        raise UnverifiableError(f"{address:#06x}: no instruction: {text!r}", "Use an nvdisasm that was tested.")
    operands = tuple(_operand(token) for token in _tokens(match["operands"] or ""))
    guard = _operand(match["guard"]) if match["guard"] else None
    modifiers = tuple(match["modifiers"].split(".")[1:])
    return Instruction(address, guard, match["opcode"], modifiers, operands, targets, " ".join(text.split()))


def _tokens(text: str) -> Iterator[str]:
    """Operands stand between commas outside brackets; a label or an offset may follow a register after a space."""
    depth, start = 0, 0
    for position, letter in enumerate(text + ","):
        depth += (letter in "[({") - (letter in "])}")
        if letter in ", " and depth == 0:
            if token := text[start:position].strip():
                yield token
            start = position + 1
    if start <= len(text):
        yield text[start:]  # brackets that do not close: no operand that anyone knows


@functools.lru_cache(maxsize=1 << 16)
def _operand(text: str) -> Operand:
    if match := _REGISTER.fullmatch(text):
        suffixes = _suffixes(match["suffixes"] + match["more"])
        return Operand(Kind.REGISTER, text, match["name"], suffixes, match["sign"] in ("-", "~"))
    if match := _PREDICATE.fullmatch(text):
        return Operand(Kind.PREDICATE, text, match["name"], negated=bool(match["sign"]))
    if match := _CONSTANT.fullmatch(text):
        return _constant(text, match)
    if match := _BINDLESS.fullmatch(text):
        inner = (Operand(Kind.REGISTER, match["bank"], match["bank"]),)
        return Operand(Kind.BINDLESS, text, suffixes=_suffixes(match["suffixes"]), inner=inner)
    if match := _ADDRESS.fullmatch(text):
        return _address(text, match)
    if match := _DESCRIPTOR.fullmatch(text):
        return Operand(Kind.DESCRIPTOR, text, match["name"])
    if match := _MATRIX.fullmatch(text):
        return Operand(Kind.MATRIX, text, match["name"], _suffixes(match["suffixes"]))
    for kind, pattern in _SIMPLE:
        if pattern.fullmatch(text):
            return Operand(kind, text, text)
    if match := _LABEL.fullmatch(text):
        return Operand(Kind.LABEL, text, match["name"])
    if re.fullmatch(_NUMBER, text):
        return Operand(Kind.IMMEDIATE, text, value=int(text, 0))
    if _FLOAT.fullmatch(text):
        return Operand(Kind.IMMEDIATE, text)
    raise UnverifiableError(f"unknown operand {text!r}", "The parser must learn it first (verify/instruction.py).")


def _suffixes(text: str) -> tuple[str, ...]:
    return tuple(suffix for suffix in text.split(".")[1:] if suffix != "reuse")


def _constant(text: str, match: re.Match[str]) -> Operand:
    inner = (Operand(Kind.REGISTER, match["index"], match["index"]),) if match["index"] else ()
    return Operand(
        Kind.CONSTANT,
        text,
        suffixes=_suffixes(match["suffixes"]),
        negated=bool(match["sign"]),
        value=int(match["offset"] or "0", 0),
        bank=int(match["bank"], 0),
        inner=inner,
    )


def _address(text: str, match: re.Match[str]) -> Operand:
    terms = match["inside"].split("+")
    registers = [_operand(term) for term in terms if "R" in term]
    offset = sum(int(term, 0) for term in terms if "R" not in term)
    if match["descriptor"]:
        registers.insert(0, _operand(match["descriptor"]))
    has_descriptor = match["descriptor"] is not None
    return Operand(Kind.ADDRESS, text, value=offset, inner=tuple(registers), has_descriptor=has_descriptor)
