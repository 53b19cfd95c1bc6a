"""The opcodes that the verifier admits secrets to and that the table does not time alone, each with its reason.

tests/verify/test_latency_table.py holds this list and the table against the verifier's own.
"""

_SPILL = "only spills use it, and the rule on control in memory reports a spill of a secret"

NOT_TIMED = {
    "MOV": "a copy; ptxas removes any chain of them",
    "UMOV": "a copy; ptxas removes any chain of them",
    "CS2R": "reads a special register and no operand; every probe's clock is one",
    "NOP": "no operands",
    "P2R": "ptxas writes it only where it runs out of predicates; its counterpart R2P is timed",
    "UP2UR": "ptxas writes it only where it runs out of predicates",
    "IMNMX": "not on sm_90, where it is VIMNMX",
    "UIMNMX": "not on sm_90, where it is UISETP and USEL",
    "R2UR": "what it fills are addresses, descriptors and branches, public by rule; it stands in the loops of HGMMA",
    "LDC": "reads parameters and constants, which one launch cannot hold in several classes at one address",
    "ULDC": "reads parameters and constants, which one launch cannot hold in several classes at one address",
    "LDL": _SPILL,
    "STL": _SPILL,
    "STAS": "needs a cluster, and time on another SM",
    "CCTL": "moves no data to registers; works on addresses alone",
    "QSPC": "works on addresses alone",
    "UTMAPF": "moves no data to the SM; works on public coordinates alone",
    "UTMACCTL": "works on descriptors alone, which are public",
    "UBLKPF": "moves no data to the SM; works on addresses alone",
}
