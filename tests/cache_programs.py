"""Programs that append to a cache at secret positions, and some that leak them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from dhp_jax import KVCache

# With two key/value heads the loop over them keeps its flag in a piece of a register whose rest held a secret. There
# the check of machine code, which does not tell pieces apart, reports a branch that is none.
B, S, N, K, D = 3, 40, 8, 4, 64


def arguments(num_tokens, dtype):
    """A cache, and the queries, keys and values of new tokens."""
    query, rows = (jnp.ones((B, num_tokens, heads, D), dtype) for heads in (N, K))
    return KVCache.create(B, S, K, D, dtype), query, rows, rows


# ---- What must pass --------------------------------------------------------------------------------------------------


def program_step(cache, query, key, value):
    cache = cache.append_oblivious(key, value)
    return cache, cache.attend(query)


def program_rejected_draft(cache, query, key, value):
    cache = cache.append_oblivious(key, value)
    return cache.truncate(cache.length - (query[:, 0, 0, 0] > 0).astype(jnp.int32)), cache.attend(query)


def program_loop(cache, query, key, value):
    return lax.scan(lambda cache, _: program_step(cache, query, key, value), cache, None, length=3)


def program_gradient(cache, query, key, value):
    def loss(floats):
        start = dataclasses.replace(cache, key=floats[0], value=floats[1])
        _, out = program_step(start, *floats[2:])
        return out.astype(jnp.float32).sum()

    return jax.grad(loss)((cache.key, cache.value, query, key, value))


STEADY = (program_step, program_rejected_draft, program_loop, program_gradient)

# ---- What must be reported -------------------------------------------------------------------------------------------


def program_select(cache, query, key, value):
    """In the HLO no address is secret; the machine code branches."""
    is_here = (jnp.arange(S) == cache.length[:, None])[..., None, None]
    return jnp.where(is_here, key[:, :1], cache.key)


def program_public_append(cache, query, key, value):
    return cache.append(key, value, cache.length[0])


def program_scatter(cache, query, key, value):
    return cache.key.at[jnp.arange(B), cache.length].set(key[:, 0])


def program_gather(cache, query, key, value):
    return cache.key[jnp.arange(B), cache.length]


def program_branch(cache, query, key, value):
    return lax.cond(cache.length[0] > 3, lambda: cache.append(key, value, 3).key, lambda: cache.key)


def program_loop_to_a_length(cache, query, key, value):
    return lax.fori_loop(0, cache.length[0], lambda i, rows: rows * 2, key)


def program_append_in_a_loop(cache, query, key, value):
    def step(carry, _):
        cache, position = carry
        return (cache.append(key, value, position), position + key.shape[1]), None

    return lax.scan(step, (cache, cache.length[1]), None, length=3)


LEAKY = {  # what the reading of the HLO must say
    program_public_append: "dynamic-update-slice at a secret index",
    program_scatter: "scatter at a secret index",
    program_gather: "gather at a secret index",
    program_branch: "conditional on a secret",
    program_loop_to_a_length: "while with a secret condition",
    program_append_in_a_loop: "dynamic-update-slice at a secret index",
}
