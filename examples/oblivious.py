"""Data-oblivious indexing: reads and writes whose address does not depend on the index.

`rows[position]` loads from an address that is computed from `position`, and whoever shares a processor cache
with the program can learn that address. The functions below touch every row and keep one of them by a select,
so the addresses are the same for every `position`.
"""

import jax
import jax.numpy as jnp
from jax import Array


def _is_selected(rows: Array, position: Array) -> Array:
    """Returns the one-hot mask of `position`, bool [B, S, 1, ...], ready to broadcast over `rows`."""
    one_hot = jnp.arange(rows.shape[1]) == position[:, None]
    return one_hot.reshape(one_hot.shape + (1,) * (rows.ndim - 2))


def read_row(rows: Array, position: Array) -> Array:
    """Reads one row per batch entry.

    Args:
        rows: [B, S, ...], or [1, S, ...] for rows that the batch shares.
        position: the secret row numbers, int32 [B].

    Returns:
        `rows[b, position[b]]`, [B, ...].
    """
    return jnp.sum(jnp.where(_is_selected(rows, position), rows, 0), axis=1)


def write_row(rows: Array, position: Array, row: Array) -> Array:
    """Overwrites one row per batch entry.

    Args:
        rows: [B, S, ...].
        position: the secret row numbers, int32 [B].
        row: the new contents, [B, 1, ...].

    Returns:
        `rows` with `row[b]` at `rows[b, position[b]]`, [B, S, ...].
    """
    return jnp.where(_is_selected(rows, position), row, rows)


def embed(tokens: Array, embedding: Array) -> Array:
    """Looks tokens up by a matrix product, which reads the whole table whatever the tokens are.

    Args:
        tokens: the secret token numbers, int [B, T].
        embedding: one row per vocabulary entry, [V, M].

    Returns:
        `embedding[tokens]`, [B, T, M].
    """
    return jax.nn.one_hot(tokens, embedding.shape[0], dtype=embedding.dtype) @ embedding
