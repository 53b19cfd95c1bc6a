"""Which registers surely hold secrets before each instruction of a kernel, and where what they hold is used.

Worked out from nothing but the life ranges that nvdisasm prints (``-plr``) and the shape of the code, so that the
verifier is not asked about itself. "Surely" means on every path: the answer is good for planting leaks, not for proofs.
"""

import re
from collections.abc import Callable, Iterator

from dhp_jax.verify import instruction as sass
from dhp_jax.verify.cubin import Kernel
from dhp_jax.verify.instruction import Instruction, Kind

# Opcodes that bring a secret straight from memory, and those that compute one value from others in fixed time.
_FROM_MEMORY = ("LDG", "LDS", "LDSM", "HGMMA")
_OF_SCORES = ("EX2", "LG2")  # MUFU of other sorts also serves the division of public integers
_COMPUTES = re.compile(
    r"(FADD|FMUL|FFMA|FMNMX|FSEL|FSETP|IADD3|IMAD|IMNMX|ISETP|LEA|LOP3|MOV|PRMT|SEL|SHF|VIADD|VIMNMX"
    r"|F2FP|HADD2|HFMA2|HMUL2|HSETP2|I2FP|HMMA|MUFU|VOTE)$"
)


class Code:
    """The instructions of a kernel, and which registers surely hold secrets before each of them."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.listed = [listed for listed in kernel.listing.code if listed.life is not None]
        self.instructions = [listed.instruction for listed in self.listed]
        self._labels = {name: address // sass.SIZE for name, address in kernel.listing.labels.items()}
        loaded = self._before(self._writes_loaded)
        self.reached = [registers is not None for registers in loaded]
        self._loaded = [registers or frozenset() for registers in loaded]
        self._tainted = [registers or frozenset() for registers in self._before(self._writes_tainted)]

    def loaded(self, position: int) -> list[int]:
        """Numbers of the general registers that hold, on every path, what was just loaded."""
        return sorted(int(name[1:]) for name in self._loaded[position] if re.fullmatch(r"R\d+", name))

    def secret_predicates(self, position: int) -> list[str]:
        """Predicates that were computed, on every path, from something loaded."""
        return sorted(name for name in self._tainted[position] if re.fullmatch(r"P\d", name))

    def is_tainted(self, position: int, register: str) -> bool:
        """Whether a register was, on every path, loaded or computed from something loaded."""
        return register in self._tainted[position]

    def users(self, position: int, register: str) -> Iterator[Instruction]:
        """Instructions further on that read a register before it is written anew, on the way straight ahead."""
        for later in range(position + 1, len(self.instructions)):
            instruction, life = self.instructions[later], self.listed[later].life
            if register in life.reads:
                yield instruction
            if register in life.writes or later + 1 not in self._successors(later):
                return

    def _before(self, writes: Callable) -> list[frozenset[str] | None]:
        """What holds before each instruction on all paths; None where no path was found."""
        before: list[frozenset[str] | None] = [None] * len(self.instructions)
        before[0] = frozenset()
        waiting = [0]
        while waiting:
            position = waiting.pop()
            held = before[position]
            after = (held - self._written(position)) | writes(position, held)
            for following in self._successors(position):
                if following < len(before):
                    met = after if before[following] is None else before[following] & after
                    if met != before[following]:
                        before[following] = met
                        waiting.append(following)
        return before

    def _written(self, position: int) -> frozenset[str]:
        """nvdisasm does not show that R2P writes predicates."""
        predicates = {f"P{i}" for i in range(7)} if self.instructions[position].opcode == "R2P" else set()
        return self.listed[position].life.writes | predicates

    def _writes_loaded(self, position: int, held: frozenset[str]) -> frozenset[str]:
        instruction, life = self.instructions[position], self.listed[position].life
        is_score = instruction.opcode == "MUFU" and (instruction.modifiers[0] in _OF_SCORES or held & life.reads)
        unguarded = instruction.guard is None
        return life.writes if unguarded and (instruction.opcode in _FROM_MEMORY or is_score) else frozenset()

    def _writes_tainted(self, position: int, held: frozenset[str]) -> frozenset[str]:
        instruction, life = self.instructions[position], self.listed[position].life
        if instruction.guard is None and _COMPUTES.match(instruction.opcode) and held & life.reads:
            return life.writes
        return self._writes_loaded(position, held)

    def _successors(self, position: int) -> list[int]:
        instruction = self.instructions[position]
        labels = [self._labels[o.name] for o in instruction.operands if o.kind is Kind.LABEL and o.name in self._labels]
        match instruction.opcode:
            case "EXIT":
                return [position + 1] if instruction.guarded else []
            case "BRA":
                return [*labels, position + 1] if _may_fall_through(instruction) else labels
            case "BSYNC":
                return [self._labels[o.name] for other in self._openers(instruction) for o in other.operands[1:]]
            case "BRX" | "CALL" | "RET":
                raise NotImplementedError(f"{instruction.text}: kernels with calls or jump tables are not mutated")
        return [position + 1]

    def _openers(self, closing: Instruction) -> list[Instruction]:
        barrier = closing.operands[-1].name
        return [other for other in self.instructions if other.opcode == "BSSY" and other.operands[0].name == barrier]


def _may_fall_through(branch: Instruction) -> bool:
    predicates = [operand for operand in branch.operands if operand.kind is Kind.PREDICATE]
    return branch.guarded or bool(predicates) or bool({"ANY", "DIV", "CONV"} & set(branch.modifiers))
