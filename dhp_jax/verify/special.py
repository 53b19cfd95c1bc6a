"""Special registers: which are public, and which are clocks. One that is not here makes the kernel UNKNOWN."""

from __future__ import annotations

from dhp_jax.verify.instruction import Instruction
from dhp_jax.verify.value import PUBLIC, Value, originating
from dhp_jax.verify.verdict import UnverifiableError

CLOCKS = frozenset(
    {"SR_CLOCKLO", "SR_CLOCKHI", "SR_GLOBALTIMERLO", "SR_GLOBALTIMERHI", *(f"SR_PM{i}" for i in range(8))}
)

_ORIGINS = {
    "thread": "SR_TID.X SR_TID.Y SR_TID.Z SR_LANEID SR_EQMASK SR_LTMASK SR_LEMASK SR_GTMASK SR_GEMASK",
    "block": "SR_CTAID.X SR_CTAID.Y SR_CTAID.Z SR_CgaCtaId",
    "launch": "SRZ SR_SWINHI SR_NTID SR_CgaSize",
    "place": "SR_VIRTUALSMID SR_SMID",
}
_BY_NAME = {name: origin for origin, names in _ORIGINS.items() for name in names.split()}


def special_register(instruction: Instruction, name: str) -> Value:
    """What a special register holds. A clock counts as public here: reading it is a finding by itself (rule CT07)."""
    if name in CLOCKS:
        return PUBLIC
    if name not in _BY_NAME:
        raise UnverifiableError(
            f"{instruction.address:#06x}: unknown special register {name}",
            "Teach verify/special.py what it holds.",
        )
    return originating(_BY_NAME[name])
