"""Rule CT02."""

from __future__ import annotations

from collections.abc import Iterator

from dhp_jax.verify.layout import Role
from dhp_jax.verify.memory import PARAMETERS
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.site import Site
from dhp_jax.verify.transfer import pointer_at
from dhp_jax.verify.value import Step

_TENSOR_COPIES = ("UTMALDG", "UTMASTG", "UTMAPF", "UTMAREDG")
_TENSOR_MAP = 1  # the second address is that of the tensor map


class SecretAddress(Rule):
    """A secret decides which memory is touched, or which lane answers.

    Catches: secret addresses of global, local, shared, constant and distributed shared memory; secret coordinates,
    sizes and descriptors of tensor and bulk copies, of wgmma operands and of cache policies; a tensor map that lies in
    memory which may hold secrets; the lane of a shuffle.
    Why: caches, coalescing and bank conflicts show addresses; whole keys were read that way.
    Misses: what happens beyond the address, such as compression of data in L2.
    Fix: read everything at public addresses, then choose.
    Control: tests/leaky, cases L9, L17 to L24.
    """

    id = "CT02"
    name = "secret-address"
    remedy = "Touch all candidates at addresses made from shapes and indices, and choose the value with ct_select."

    def offences(self, site: Site) -> Iterator[Offence]:
        """A secret register in an address, or a tensor map from who knows where."""
        for read, secret in site.secrets(Role.ADDRESS, Role.LANE):
            what = "the lane" if read.role is Role.LANE else "the address"
            yield f"{read.register}, which decides {what}, is secret", secret
        if site.instruction.opcode in _TENSOR_COPIES:
            pointer = pointer_at(site.instruction, _TENSOR_MAP, site.state)
            if pointer != frozenset({PARAMETERS}) and not site.memory.is_public(pointer):
                yield (
                    "the tensor map lies in memory that may hold secrets",
                    Step(site.instruction, "", "a tensor map outside the parameters"),
                )
