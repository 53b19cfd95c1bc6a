"""Which evidence must report which control, the kernels of cuda/proof/controls.cc that leak on purpose.

A check that misses one of its controls proves nothing: its verdicts become UNKNOWN.
"""

from __future__ import annotations

import dataclasses

from dhp_jax.verify.host.verdict import Finding
from dhp_jax.verify.verdict import Verdict

CONDITION, ADDRESS = "UninitCondition", "UninitValue"  # as memcheck names a branch and an address


@dataclasses.dataclass(frozen=True)
class Control:
    """What each sort of evidence must see in one control.

    Attributes:
      rules: rules of which the machine-code check must report one, whatever the instruction set.
      memcheck: the sort of error that memcheck must report; empty where it cannot see the leak.
      counts_differ: whether the number of executed instructions depends on values or lengths.
      only: the one instruction set that has it; empty: all have.
    """

    rules: frozenset[str]
    memcheck: str = ""
    counts_differ: bool = False
    only: str = ""


def _control(*rules: str, memcheck: str = "", counts_differ: bool = False, only: str = "") -> Control:
    return Control(frozenset(rules), memcheck, counts_differ, only)


CONTROLS = {
    "branch_on_score": _control("secret-branch", memcheck=CONDITION, counts_differ=True),
    "skip_keys_past_length": _control("secret-branch", memcheck=CONDITION, counts_differ=True),
    "address_from_length": _control("secret-address", memcheck=ADDRESS),
    "gather_by_value": _control("secret-address", memcheck=ADDRESS),
    "store_where_positive": _control("secret-branch", "secret-mask", memcheck=CONDITION),
    "libm_exponential": _control("foreign-call", memcheck=CONDITION),
    "divide": _control("secret-latency"),
    "square_root": _control("secret-latency"),
    "divide_length": _control("secret-latency"),
    "copy_up_to_length": _control("secret-branch", "secret-address", memcheck=CONDITION),
    "branch_through_stack": _control("secret-branch", memcheck=CONDITION),
    "branch_through_memory": _control("secret-branch", memcheck=CONDITION),
    "call_by_value": _control("secret-target", memcheck=ADDRESS),
    "branch_on_any": _control("secret-branch", memcheck=CONDITION),
    "plan_by_length": _control("secret-plan", memcheck=CONDITION, counts_differ=True),
    "load_where_positive": _control("secret-mask", only="avx512"),
    "compress_positive": _control("secret-mask", only="avx512"),
}


def missed(control: str, detail: str) -> Finding:
    """The finding that a control was not reported, which voids a check."""
    return Finding(Verdict.UNKNOWN, "missed-control", control, detail)
