"""Rule CT01."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.layout import Role
from dhp_jax.verify.opcodes import Family
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site


class SecretBranch(Rule):
    """A secret decides which instruction comes next, or when.

    Catches: a branch, exit, call, return, break or trap under a secret guard; the second predicate of a branch; a
    secret target of an indirect branch; the lane mask of a warp synchronisation; the time of a sleep.
    Why: an observer who sees addresses of instructions, or only the time, sees the decision.
    Misses: nothing in this model. Short `if`s that ptxas turns into predicates are CT03's.
    Fix: compute both sides and choose the value with a select (cuda/device/ct.cuh).
    Control: tests/leaky, cases L01, L02, L04 to L10, L13, L14.
    """

    id = "CT01"
    name = "secret-branch"
    remedy = "Compute both sides for all data and choose the result with ct_select; take loop bounds from shapes."

    def offences(self, site: Site) -> Iterator[Offence]:
        """A secret guard of, or a secret among the operands of, an instruction of control flow."""
        if site.opcode.family is Family.FLOW:
            if secret := site.guard_secret():
                yield "its guard is secret", secret
            for read, secret in site.secrets(Role.FLOW):
                yield f"{read.register}, which decides where or when execution goes on, is secret", secret
