"""Every opcode that the analysis knows: its operands, what of it may be secret, and why. Default deny.

One line an opcode: ``names | layout | modifiers``, the layout in the language of layout.py. An opcode, a modifier or a
form that is not here makes the kernel UNKNOWN. Each group says what an instruction may do with secrets: as data, or
also as its guard. Addresses, lanes, gates among the operands, flow and meetings (layout.Role) are never secret,
whatever the group. Of an opcode's lines the first that fits counts.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re

from dhp_jax.verify import layout
from dhp_jax.verify.instruction import Instruction, Operand
from dhp_jax.verify.layout import Slot
from dhp_jax.verify.verdict import UnverifiableError


class Family(enum.Enum):
    """Which rule speaks when a guard or an operand is secret."""

    ALU = "arithmetic"
    QUEUE = "queued computation"
    MEMORY = "memory"
    ATOMIC = "atomic"
    BARRIER = "barrier"
    FLOW = "control flow"


class Admits(enum.Enum):
    """What of an instruction may be secret."""

    EVERYTHING = "data and guard"
    DATA = "data"
    NOTHING = "nothing"


@dataclasses.dataclass(frozen=True)
class Opcode:
    """What is known of one opcode with some of its modifiers."""

    name: str
    slots: tuple[Slot, ...]
    modifiers: re.Pattern[str]
    family: Family
    admits: Admits
    reason: str

    def covers(self, modifiers: tuple[str, ...]) -> bool:
        """Whether all modifiers are known ones."""
        return all(self.modifiers.fullmatch(modifier) for modifier in modifiers)


_COMPARE = "F EQ LT LE GT GE NE T NUM NAN EQU LTU LEU GTU GEU NEU AND OR XOR"
_ROUND = "RN RM RP RZ FTZ SAT"
_HALF = "F32 BF16_V2 MMA BF"
_TYPES = "F16 F32 F64 BF16 S8 S16 S32 S64 U8 U16 U32 U64"
_SIZES = "E U8 S8 U16 S16 64 128"
_CACHES = "EF EL EN NA LU EU LTC64B LTC128B LTC256B CONSTANT STRONG GPU SYS CTA SM PRIVATE"
_REDUCE = "ADD MIN MAX INC DEC AND OR XOR"
_ATOMIC = f"E {_REDUCE} EXCH CAS CAST SPIN POPC F32 F64 F16x2 BF16x2 S32 S64 32 64 FTZ RN STRONG GPU SYS CTA"
_FIXED = (
    "fixed latency: ptxas counts its cycles instead of waiting for it, which no latency that depends on operands would "
    "allow; every kernel is held to it, as none of these may signal a scoreboard. Timed on all sorts of operands, too"
)

_GROUPS = (
    (
        Family.ALU,
        Admits.EVERYTHING,
        f"{_FIXED}. Under a guard that is on, off or mixed it takes the same time, alone and beside others (benchmarks/"
        "results, latency)",
        f"""
        IADD3                    | R : V V V                         |
        LOP3                     | P? R : V V V I P                  | LUT
        SHF                      | R : V V V                         | L R W U32 S32 HI
        SEL FSEL                 | R : V V P                         | FTZ
        PRMT                     | R : V V V                         |
        SGXT BMSK                | R : V V                           | U32 W
        VABSDIFF4                | R : V V V                         | U8
        VIMNMX                   | R : V V P                         | U32 RELU S16x2 U16x2
        VIMNMX3 VIADDMNMX        | R : V V V P                       | U32 RELU S16x2 U16x2
        ISETP                    | P P : V V P P?                    | {_COMPARE} U32
        FMNMX                    | R : V V P                         | FTZ NAN
        FSETP                    | P P : V V P                       | {_COMPARE} FTZ
        FSET                     | R : V V P                         | {_COMPARE} FTZ BF
        HMNMX2                   | R : V V P                         | {_HALF} FTZ NAN
        HSET2                    | R : V V P                         | {_HALF} {_COMPARE} FTZ
        HSETP2                   | P P : V V P                       | {_HALF} {_COMPARE} FTZ
        F2FP                     | R : V V                           | F16 BF16 F32 PACK_AB
        F2FP                     | R : V V V                         | E4M3 E5M2 F32 PACK_AB_MERGE_C SATFINITE
        I2FP                     | R : V                             | F32 S32 U32
        PLOP3                    | P P : P P P I I                   | LUT
        """,
    ),
    (
        Family.ALU,
        Admits.DATA,
        f"{_FIXED}. But a warp in which its guard is off in every lane goes faster, or nobody has shown that it does "
        "not (benchmarks/results, latency)",
        f"""
        IADD3 UIADD3             | Rd P? P? : Vd Vd Vd P? P?         | X 64
        IMAD UIMAD               | Rwide P? : V V Vaddend P?         | MOV IADD SHL U32 HI WIDE X
        LEA ULEA                 | R P? : V V V V? P?                | HI X SX32
        ULOP3                    | P? R : V V V I P                  | LUT
        SHF USHF                 | R : V V V                         | L R W U32 S32 U64 S64 HI
        MOV UMOV                 | R : V                             |
        USEL                     | R : V V P                         | FTZ
        UPRMT                    | R : V V V                         |
        USGXT UBMSK              | R : V V                           | U32 W
        IABS                     | R : V                             |
        IDP VABSDIFF4            | R : V V V                         | 4A 2A LO HI S8 U8 S16 U16
        VIADD                    | R : V V                           | 16x2
        IMNMX UIMNMX             | R : V V P                         | U32 RELU S16x2 U16x2
        ISETP UISETP             | P P : V V P P?                    | {_COMPARE} U32 EX
        FADD FMUL                | R : V V                           | {_ROUND}
        FFMA                     | R : V V V                         | {_ROUND}
        HADD2 HMUL2              | R : V V V?                        | {_HALF} {_ROUND}
        HFMA2                    | R : V V V V?                      | {_HALF} {_ROUND} RELU
        UPLOP3                   | P P : P P P I I                   | LUT
        P2R UP2UR                | R : Q V V                         | B1 B2 B3
        R2P                      | Q : V I                           |
        VOTE VOTEU               | R? P : P                          | ALL ANY EQ
        CS2R                     | Rspecial : S                      | 32
        NOP                      | :                                 |
        """,
    ),
    (
        Family.QUEUE,
        Admits.DATA,
        "waits in a queue; its latency was timed and is independent of operands (benchmarks/results), an assumption on "
        "other architectures",
        """
        MUFU                     | R : V                             | EX2 LG2 RCP RSQ
        SHFL                     | P R : V V:lane V:lane             | IDX UP DOWN BFLY
        R2UR                     | P? R : V                          |
        HMMA IMMA                | Rc : Ra Rb Rc                     | 16816 1688 1684 16832 F32 F16 BF16 TF32 S8 U8 SAT
        HGMMA QGMMA IGMMA        | Rsums : R4? M4 Rsums P?:gate K?   | 64x\\d+x\\d+ F32 F16 BF16 TF32 E4M3 E5M2 S8 U8
        """,
    ),
    (
        Family.QUEUE,
        Admits.NOTHING,
        "waits in a queue, and nobody has shown that its latency is independent of operands",
        f"""
        MUFU                     | R : V                             | SIN COS TANH SQRT RCP64H RSQ64H F16
        F2F F2I I2F FRND         | Rto : Vfrom                       | {_TYPES} {_ROUND} FLOOR CEIL TRUNC NTZ
        POPC FLO BREV UFLO UPOPC | R : V                             | U32 SH
        FCHK                     | P : V V                           | DIVIDE
        DADD DMUL                | R2 : V2 V2                        | {_ROUND}
        DFMA                     | R2 : V2 V2 V2                     | {_ROUND}
        DSETP                    | P P : V2 V2 P                     | {_COMPARE} MIN MAX
        DMMA                     | Rc : Ra Rb Rc                     | 884 8x8x4
        REDUX                    | R : V                             | SUM MIN MAX AND OR XOR S32
        MATCH                    | P? R : V                          | ANY ALL
        MOVM                     | R : V                             | 16 MT88
        S2R S2UR                 | R : S                             |
        """,
    ),
    (
        Family.MEMORY,
        Admits.DATA,
        "its time depends on addresses, sizes and what else is in flight, all public, and not on the bits that move",
        f"""
        LDG                      | Rmem : Abase                      | {_SIZES} {_CACHES}
        LD                       | Rmem : Abase                      | {_SIZES} {_CACHES}
        LDS LDL                  | Rmem : A                          | {_SIZES} LU
        LDC ULDC                 | Rmem : Cmem                       | {_SIZES}
        LDSM                     | Rmoved : A                        | 16 M88 MT88 1 2 4
        LDGSTS                   | : A Abase P?:gate                 | {_SIZES} {_CACHES} BYPASS ZFILL
        STG ST                   | : Abase Vmem                      | {_SIZES} {_CACHES}
        STS STL                  | : A Vmem                          | {_SIZES}
        STSM                     | : A Vmoved                        | 16 M88 MT88 1 2 4
        STAS                     | : A2 Vmem                         | {_SIZES}
        CCTL                     | : Abase?                          | E IVALL PF2
        QSPC                     | P R : Abase                       | E S
        UTMALDG                  | : Aload A2 R?:address D2?         | 1D 2D 3D 4D 5D IM2COL MULTICAST
        UTMASTG                  | : Astore A2 D2?                   | 1D 2D 3D 4D 5D
        UTMAPF                   | : Aprefetch A2 D2?                | L2 1D 2D 3D 4D 5D
        UTMACCTL                 | : A2                              | PF IV
        UBLKCP                   | : Abulkto Abulkfrom R:address D2? | S G
        UBLKPF                   | : A2 R:address D2?                | L2
        """,
    ),
    (
        Family.ATOMIC,
        Admits.NOTHING,
        "its time depends on who else touches the same place, and its order on scheduling",
        f"""
        ATOMG ATOM               | P Rmem : Abase Vmem Vmem?          | {_ATOMIC}
        ATOMS                    | Rmem : A Vmem? Vmem?              | {_ATOMIC}
        RED REDG                 | : Abase Vmem                      | {_ATOMIC}
        REDAS                    | : A2 Vmem                         | {_ATOMIC}
        UTMAREDG                 | : Astore A2 D2?                   | 1D 2D 3D 4D 5D {_REDUCE}
        UBLKRED                  | : A2 A R:address D2?              | S G {_REDUCE} {_TYPES} RN
        """,
    ),
    (
        Family.BARRIER,
        Admits.NOTHING,
        "decides who waits for whom, and orders memory; its result is public by rule (transfer.py says on what ground)",
        """
        BAR                      | : V:meeting V?:meeting P?         | SYNC ARV RED POPC AND OR DEFER_BLOCKING
        B2R                      | R P? :                            | RESULT
        SYNCS                    | R2 : A R:meeting                  | ARRIVE TRANS64 RED A1T0 A0T1 A0TR ART0
        SYNCS                    | P : A R:meeting                   | PHASECHK TRANS64 TRYWAIT
        SYNCS                    | R2 : A R2:meeting                 | EXCH 64
        SYNCS                    | : A                               | CCTL IV
        ARRIVES                  | : A                               | LDGSTSBAR 64 ARVCNT TRANSCNT
        ELECT                    | P R : P:meeting                   |
        USETMAXREG               | P? : V:meeting                    | DEALLOC TRY_ALLOC CTAPOOL
        UCGABAR_ARV UCGABAR_WAIT | :                                 |
        WARPGROUP                | : K? I?                           | ARRIVE DEPBAR LE
        DEPBAR                   | : K I? K?                         | LE
        LDGDEPBAR UTMACMDFLUSH   | :                                 |
        ACQBULK PREEXIT          | :                                 |
        MEMBAR ERRBAR CGAERRBAR  | :                                 | ALL SC CTA GPU SYS
        FENCE                    | :                                 | VIEW ASYNC S
        """,
    ),
    (
        Family.FLOW,
        Admits.NOTHING,
        "decides which instruction comes next, or when",
        """
        BRA                      | : R?:flow P?:flow L               | U ANY DIV CONV
        BRX                      | : R2:flow I                       |
        CALL                     | : R2?:flow L                      | REL NOINC
        RET                      | : R2:flow L                       | REL NODEC
        EXIT                     | :                                 |
        BSSY                     | B : L                             |
        BSYNC BREAK              | : P?:flow B                       |
        BMOV                     | B : R:flow                        | 32
        BMOV                     | R : B                             | 32 CLEAR
        WARPSYNC                 | : V?:flow                         | ALL
        NANOSLEEP                | : V:flow                          | SYNCS
        YIELD                    | :                                 |
        BPT                      | : I                               | TRAP
        """,
    ),
)


def _table() -> dict[str, tuple[Opcode, ...]]:
    table: dict[str, tuple[Opcode, ...]] = {}
    for family, admits, reason, lines in _GROUPS:
        for line in lines.strip().splitlines():
            names, form, modifiers = (part.strip() for part in line.split("|"))
            pattern = re.compile("|".join(modifiers.split()) or r"(?!)")
            for name in names.split():
                opcode = Opcode(name, layout.parse(form), pattern, family, admits, reason)
                table[name] = (*table.get(name, ()), opcode)
    return table


TABLE = _table()


@functools.lru_cache(maxsize=1 << 16)
def known(instruction: Instruction) -> tuple[Opcode, tuple[tuple[Slot, Operand], ...]]:
    """The line of the table for an instruction, and each operand with its slot.

    Raises:
        UnverifiableError: no line has the opcode, all its modifiers, and a layout that the operands fit.
    """
    if instruction.opcode not in TABLE:
        raise _unknown("opcode", instruction)
    lines = _lines(instruction.opcode, instruction.modifiers)
    if not lines:
        raise _unknown("modifier", instruction)
    for opcode in lines:
        paired = layout.pair(opcode.slots, instruction.operands)
        if paired is not None:
            return opcode, paired
    raise _unknown("form", instruction)


@functools.lru_cache(maxsize=1 << 12)
def _lines(opcode: str, modifiers: tuple[str, ...]) -> tuple[Opcode, ...]:
    return tuple(line for line in TABLE[opcode] if line.covers(modifiers))


def _unknown(what: str, instruction: Instruction) -> UnverifiableError:
    return UnverifiableError(
        f"{instruction.address:#06x}: unknown {what} in {instruction.text!r}",
        f"Teach verify/opcodes.py the {what}, with its reason; until then nothing is claimed.",
    )
