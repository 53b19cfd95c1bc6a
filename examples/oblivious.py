"""Data-oblivious indexing: reads whose address does not depend on the index.

`rows[position]` loads from an address that is computed from `position`, and whoever shares a processor cache
with the program can learn that address. The functions below read every row, whatever `position` is.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


def read_row(rows: Array, position: Array) -> Array:
    """Reads one row per batch entry.

    Args:
        rows: float32 [B, S, ...], or [1, S, ...] for rows that the batch shares.
        position: the secret row numbers, int32 [B].

    Returns:
        `rows[b, position[b]]`, [B, ...].
    """
    # A sum over `jnp.where` would not do: on the CPU, XLA makes of it a branch that skips the rows that are not
    # selected. Words of ones or zeros keep the bits of one row. The cumulative sum is a loop of its own, and of its
    # results the next loop does not know that there are only these two.
    distance = jnp.arange(rows.shape[1]) - position[:, None]
    mask = lax.cumsum((distance == 1).astype(jnp.uint32) - (distance == 0).astype(jnp.uint32), axis=1)
    mask = mask.reshape(mask.shape + (1,) * (rows.ndim - 2))
    bits = lax.bitcast_convert_type(rows, jnp.uint32) & mask
    return lax.bitcast_convert_type(lax.reduce(bits, jnp.uint32(0), lax.bitwise_or, (1,)), rows.dtype)


def embed(tokens: Array, embedding: Array) -> Array:
    """Looks tokens up by a matrix product, which reads the whole table whatever the tokens are.

    Args:
        tokens: the secret token numbers, int [B, T].
        embedding: one row per vocabulary entry, [V, M].

    Returns:
        `embedding[tokens]`, [B, T, M].
    """
    return jax.nn.one_hot(tokens, embedding.shape[0], dtype=embedding.dtype) @ embedding
