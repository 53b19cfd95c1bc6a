"""Constant-time attention in two minutes.

    python examples/quickstart.py  # a few seconds, on any machine

What an observer can see of a call, its time and the memory that it touches, depends on shapes and options and never
on values: not on the queries, not on the mask, and not on how long the sequences are inside their padding.
"""

import jax
import jax.numpy as jnp

import dhp_jax

B, T, S, N, K, D = 2, 96, 128, 8, 2, 64  # batch, queries, keys, query heads, key/value heads, channels


def largest_difference(x: jax.Array, y: jax.Array) -> str:
    """Formats how far two arrays are apart."""
    return f"{jnp.max(jnp.abs(x - y)):.1e} from jax.nn"


def main() -> None:
    """Calls, compiles, hides lengths, differentiates, masks and maps."""
    rngs = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(rngs[0], (B, T, N, D))
    key, value = (jax.random.normal(rng, (B, S, K, D)) for rng in rngs[1:])

    # The arguments of jax.nn.dot_product_attention, and its answer. Here 8 query heads share 2 key/value heads.
    out = dhp_jax.dot_product_attention(query, key, value)
    expected = jax.nn.dot_product_attention(query, key, value)
    print(f"call: {out.shape}, {largest_difference(out, expected)}")

    # Under jit the bits are the same, as they are in every run: no sum is taken in an order that chance decides.
    attend = jax.jit(dhp_jax.dot_product_attention)
    print(f"jit: the same bits: {jnp.array_equal(attend(query, key, value), out)}")

    # Lengths are secret: 5 true keys cost what 128 cost, and what stands past a length changes nothing.
    lengths = jnp.array([100, 5])
    past = (jnp.arange(S) >= lengths[:, None])[..., None, None]
    short = attend(query, key, value, key_value_seq_lengths=lengths)
    filled = (jnp.where(past, jnp.nan, array) for array in (key, value))
    same = jnp.array_equal(attend(query, *filled, key_value_seq_lengths=lengths), short)
    print(f"lengths: with NaN past them, the same bits: {same}")

    # Gradients for query, key, value and bias; the backward pass is constant-time too.
    def loss(attention, query):
        return jnp.sum(attention(query, key, value) ** 2)

    d_query, d_expected = (
        jax.grad(loss, argnums=1)(attention, query)
        for attention in (dhp_jax.dot_product_attention, jax.nn.dot_product_attention)
    )
    print(f"grad: {d_query.shape}, {largest_difference(d_query, d_expected)}")

    # Causal and window structure is public, so that blocks of keys that it hides are skipped.
    options = {"is_causal": True, "local_window_size": (31, 0)}
    out = dhp_jax.dot_product_attention(query, key, value, **options)
    expected = jax.nn.dot_product_attention(query, key, value, **options)
    print(f"causal: a window of 32 keys, {largest_difference(out, expected)}")

    # vmap over anything, here over one sequence's queries: the keys and values are not copied for each.
    many = jax.vmap(attend, in_axes=(0, None, None))(query, key[0], value[0])
    print(f"vmap: {many.shape}, {B} sets of queries on the same keys")


if __name__ == "__main__":
    main()
