"""The machine code that XLA's CPU compiler makes of a program, judged by the check of our own CPU kernels.

XLA writes each kernel of a program to an object file if asked to. Of one kernel's arguments, the struct that holds the
addresses of the arrays is public, and so is the number of the piece of work; what lies behind the addresses is secret.
"""

from __future__ import annotations

import pathlib
import subprocess
import tempfile
from typing import Any

from dhp_jax.verify.host.elf import Elf
from dhp_jax.verify.host.state import State
from dhp_jax.verify.host.values import FIELDS, pointer
from dhp_jax.verify.host.walk import Walk
from dhp_jax.verify.host.x86 import Decoder

_RDI = 7
# XLA_CPU_KernelCallFrame: pointer to the sizes of the grid, to the place in it; number of arrays, pointer to theirs.
_CALL_FRAME = FIELDS + "ppnp"


def judge(path: pathlib.Path) -> tuple[set[str], int]:
    """The rules that the kernels of an object file break, and how many of their instructions work on secrets."""
    library = path.with_suffix(".so")
    subprocess.run(["g++", "-shared", "-nostdlib", "-o", library, path], check=True, capture_output=True, text=True)
    elf, broken, on_secrets = Elf(library), set(), set()
    for address in elf.symbols.values():
        if not elf.is_code(address):
            continue
        state = State()
        state.general[_RDI] = pointer(_CALL_FRAME)
        walk = Walk(elf, Decoder(elf), address, state)
        broken |= {rule for rule, _ in walk.findings}
        on_secrets |= walk.semantics.worked_on_secrets
    return broken, len(on_secrets)


def judge_program(lowered: Any, isa: str) -> tuple[set[str], int]:
    """The rules that a program breaks, compiled for an instruction set: SSE4_2, AVX2 or AVX512; and as above."""
    with tempfile.TemporaryDirectory() as folder:
        lowered.compile(compiler_options={"xla_cpu_max_isa": isa, "xla_dump_to": folder})
        judged = [judge(path) for path in sorted(pathlib.Path(folder).glob("*.o"))]
    if not judged:
        raise FileNotFoundError("XLA wrote no kernel")
    return set().union(*(broken for broken, _ in judged)), sum(number for _, number in judged)
