"""The rules, one a file. A kernel is SAFE when none of them finds anything at any instruction that can be reached."""

from dhp_jax.verify.rules.clock import Clock
from dhp_jax.verify.rules.control_in_memory import ControlInMemory
from dhp_jax.verify.rules.rule import Offence, Rule
from dhp_jax.verify.rules.secret_address import SecretAddress
from dhp_jax.verify.rules.secret_atomic import SecretAtomic
from dhp_jax.verify.rules.secret_barrier import SecretBarrier
from dhp_jax.verify.rules.secret_branch import SecretBranch
from dhp_jax.verify.rules.secret_guard import SecretGuard
from dhp_jax.verify.rules.secret_latency import SecretLatency

RULES: tuple[Rule, ...] = (
    SecretBranch(),
    SecretAddress(),
    SecretGuard(),
    SecretLatency(),
    SecretAtomic(),
    SecretBarrier(),
    Clock(),
    ControlInMemory(),
)

__all__ = ["RULES", "Offence", "Rule"]
