"""The rules that machine code must keep, by name, and which instructions may work on secrets.

The list of instructions is an allow-list: their latency does not depend on their operands on the x86-64 processors
whose documentation says anything of it, once subnormals are flushed to zero (cuda/host/denormals.h). An instruction
that is on neither list gives UNKNOWN.
"""

from __future__ import annotations

RULES = {
    "secret-branch": "a conditional jump depends on a secret",
    "secret-address": "a memory address depends on a secret",
    "secret-mask": "a secret mask governs which lanes of memory are accessed",
    "secret-target": "a jump or call goes to a secret address",
    "secret-latency": "an instruction whose latency depends on its operands works on a secret",
    "secret-plan": "what is planned, and so the amount of work, depends on a secret",
    "foreign-call": "a call leaves the checked code",
    "unlisted-instruction": "an instruction that is not known to have a fixed latency works on a secret",
    "changed-mode": "the mode of the floating-point unit is written, and with it flush-to-zero",
    "unfollowed-jump": "a jump or call whose target cannot be read from the code",
    "unfollowed-write": "a secret is written where the check cannot follow it",
    "unfollowed-stack": "the stack pointer cannot be followed",
}


def _names(text: str) -> list[str]:
    return text.split()


_INTEGER = _names("""
  MOV MOVZX MOVSX MOVSXD LEA ADD ADC SUB SBB INC DEC NEG NOT AND OR XOR ANDN CMP TEST IMUL MUL MULX
  SHL SHR SAR ROL ROR SHLX SHRX SARX RORX SHLD SHRD BT BSWAP CDQ CDQE CQO CWDE LZCNT TZCNT POPCNT PUSH POP LEAVE
""")
CONDITIONS = _names("A AE B BE E G GE L LE NE NO NP NS O P S")

# Without the leading V of their AVX forms.
_MOVES = _names("""
  MOVAPS MOVUPS MOVAPD MOVUPD MOVDQA MOVDQU MOVDQA32 MOVDQA64 MOVDQU8 MOVDQU16 MOVDQU32 MOVDQU64 LDDQU MOVD MOVQ
  MOVSS MOVSD MOVHPS MOVLPS MOVHPD MOVLPD MOVHLPS MOVLHPS MOVSHDUP MOVSLDUP MOVDDUP MOVMSKPS MOVMSKPD PMOVMSKB
  BROADCASTSS BROADCASTSD BROADCASTF128 BROADCASTI128 BROADCASTF32X2 BROADCASTI32X2 BROADCASTF32X4 BROADCASTI32X4
  BROADCASTF64X2 BROADCASTI64X2 BROADCASTF64X4 BROADCASTI64X4 BROADCASTF32X8 BROADCASTI32X8 PBROADCASTB PBROADCASTW
  PBROADCASTD PBROADCASTQ PINSRB PINSRW PINSRD PINSRQ PEXTRB PEXTRW PEXTRD PEXTRQ INSERTPS EXTRACTPS INSERTF128
  INSERTI128 EXTRACTF128 EXTRACTI128 INSERTF32X4 INSERTI32X4 EXTRACTF32X4 EXTRACTI32X4 INSERTF64X2 INSERTI64X2
  EXTRACTF64X2 EXTRACTI64X2 INSERTF32X8 INSERTI32X8 EXTRACTF32X8 EXTRACTI32X8 INSERTF64X4 INSERTI64X4 EXTRACTF64X4
  EXTRACTI64X4 PMOVZXBW PMOVZXBD PMOVZXBQ PMOVZXWD PMOVZXWQ PMOVZXDQ PMOVSXBW PMOVSXBD PMOVSXBQ PMOVSXWD PMOVSXWQ
  PMOVSXDQ PMOVWB PMOVDB PMOVDW PMOVQD MASKMOVPS PMASKMOVD ZEROUPPER
""")
_SHUFFLES = _names("""
  SHUFPS SHUFPD SHUFF32X4 SHUFF64X2 SHUFI32X4 SHUFI64X2 PSHUFB PSHUFD PSHUFHW PSHUFLW UNPCKLPS UNPCKHPS UNPCKLPD
  UNPCKHPD PUNPCKLBW PUNPCKHBW PUNPCKLWD PUNPCKHWD PUNPCKLDQ PUNPCKHDQ PUNPCKLQDQ PUNPCKHQDQ PACKSSWB PACKUSWB
  PACKSSDW PACKUSDW PALIGNR ALIGND ALIGNQ PERMILPS PERMILPD PERM2F128 PERM2I128 PERMD PERMPS PERMQ PERMPD PERMW
  PERMT2D PERMT2PS PERMT2Q PERMT2PD PERMT2W PERMI2D PERMI2PS PERMI2Q PERMI2PD PERMI2W BLENDPS BLENDPD BLENDVPS
  BLENDVPD PBLENDW PBLENDD PBLENDVB BLENDMPS BLENDMPD PBLENDMD PBLENDMQ PBLENDMW PBLENDMB PSLLDQ PSRLDQ
""")
_VECTOR_INTEGER = _names("""
  PADDB PADDW PADDD PADDQ PSUBB PSUBW PSUBD PSUBQ PMULLW PMULHW PMULLD PMULUDQ PMULDQ PABSD PAND PANDD PANDQ PANDN
  PANDND PANDNQ POR PORD PORQ PXOR PXORD PXORQ PTERNLOGD PTERNLOGQ PSLLW PSLLD PSLLQ PSRLW PSRLD PSRLQ PSRAW PSRAD
  PSRAQ PSLLVD PSRLVD PSRAVD PSLLVQ PSRLVQ PCMPEQB PCMPEQW PCMPEQD PCMPEQQ PCMPGTB PCMPGTW PCMPGTD PCMPGTQ PCMPB
  PCMPUB PCMPW PCMPUW PCMPD PCMPUD PCMPQ PCMPUQ PMINSD PMAXSD PMINUD PMAXUD PMINSW PMAXSW PMINUB PMAXUB PTEST
  PTESTMD PTESTNMD PTESTMQ PTESTNMQ PTESTMB PTESTNMB PMOVM2B PMOVM2W PMOVM2D PMOVM2Q PMOVB2M PMOVW2M PMOVD2M PMOVQ2M
""")
_FLOAT = _names("""
  ADDPS ADDSS ADDPD ADDSD SUBPS SUBSS SUBPD SUBSD MULPS MULSS MULPD MULSD MINPS MINSS MAXPS MAXSS ANDPS ANDPD
  ANDNPS ANDNPD ORPS ORPD XORPS XORPD CMPPS CMPSS CMPPD CMPSD COMISS UCOMISS COMISD UCOMISD TESTPS
  CVTDQ2PS CVTPS2DQ CVTTPS2DQ CVTSI2SS CVTSS2SI CVTTSS2SI HADDPS ROUNDPS RNDSCALEPS
""")
_FUSED = [
    f"VF{sign}{operation}{order}{kind}"
    for sign in ("", "N")
    for operation in ("MADD", "MSUB")
    for order in (132, 213, 231)
    for kind in ("PS", "SS", "PD", "SD")
]
_MASKS = [
    f"K{operation}{width}"
    for operation in _names("MOV AND ANDN OR XOR XNOR NOT ADD ORTEST TEST SHIFTL SHIFTR UNPCK")
    for width in ("B", "W", "D", "Q", "BW", "WD", "DQ")
]
_VECTOR = [*_MOVES, *_SHUFFLES, *_VECTOR_INTEGER, *_FLOAT]

FIXED_LATENCY = frozenset(
    [*_INTEGER, *_VECTOR, *(f"V{name}" for name in _VECTOR), *_FUSED, *_MASKS]
    + [f"{stem}{condition}" for stem in ("SET", "CMOV", "J") for condition in CONDITIONS]
    + ["PREFETCHT0", "PREFETCHT1", "PREFETCHT2", "PREFETCHNTA"]
    # As memset and memcpy: their course depends on addresses and counts, and those must be public.
    + [f"{stem}{size}_STRING" for stem in ("STOS", "MOVS") for size in "BWDQ"]
)

_DIVISIONS = _names("DIVPS DIVSS DIVPD DIVSD SQRTPS SQRTSS SQRTPD SQRTSD")
VARIABLE_LATENCY = frozenset(["DIV", "IDIV", *_DIVISIONS, *(f"V{name}" for name in _DIVISIONS)])

FLOAT_MODES = frozenset(["LDMXCSR", "VLDMXCSR", "FXRSTOR", "FXRSTOR64", "XRSTOR", "XRSTOR64", "FLDCW", "FLDENV"])

# Functions of the C library that a compiler calls on its own. Their course depends on addresses and sizes alone,
# which the check demands to be public, not on the bytes they move.
BLOCK_FUNCTIONS = {"memcpy", "memmove", "memset"}
# Functions that let other threads run; they take nothing and give nothing that a kernel uses.
WAITING_FUNCTIONS = {"sched_yield"}
