"""The `attention_fn` of Flax's attention modules, nnx and linen. Flax itself is not imported: only its call is met.

Those modules pass more than the arguments of jax.nn, in any rank, and not the same from one release to the next. What
changes no result here is taken, and what would change it and cannot be done is an error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dhp_jax.attention import dot_product_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionFn:
    """``dhp_jax.dot_product_attention`` for the argument `attention_fn` of Flax's attention modules.

    ::

        nnx.MultiHeadAttention(..., attention_fn=dhp_jax.flax.AttentionFn())
        nn.MultiHeadDotProductAttention(..., attention_fn=dhp_jax.flax.AttentionFn(is_causal=True))

    It takes the place of Flax's own ``dot_product_attention`` and differs from it as
    ``dhp_jax.dot_product_attention`` does from that of jax.nn: a row without a key gives 0. Instances with equal
    options are equal, so that a module built anew with one does not compile anew.

    Attributes:
      scale: factor on the dot products; default 1 / sqrt(D); public.
      is_causal: query t sees keys s <= t, whatever the module says for one call; public. Needs no mask of size T x S.
      local_window_size: (left, right): query t sees keys t - left <= s <= t + right; an int w means (w, w); public.
    """

    scale: float | None = None
    is_causal: bool = False
    local_window_size: int | tuple[int, int] | None = None

    # Flax linen looks up in this signature which of its arguments to pass, and drops the others in silence. So those
    # that must be refused are named too.
    def __call__(
        self,
        query: jax.typing.ArrayLike,
        key: jax.typing.ArrayLike,
        value: jax.typing.ArrayLike,
        bias: jax.typing.ArrayLike | None = None,
        mask: jax.typing.ArrayLike | None = None,
        *,
        is_causal: bool = False,
        query_seq_lengths: jax.typing.ArrayLike | None = None,
        key_value_seq_lengths: jax.typing.ArrayLike | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dropout_rng: Any = None,
        broadcast_dropout: bool = True,
        precision: Any = None,
        force_fp32_for_softmax: bool = False,
        qk_attn_weights_einsum: Any = None,
        attn_weights_value_einsum: Any = None,
        module: Any = None,
        **unknown: Any,
    ) -> jax.Array:
        """Attention as a Flax module calls it.

        Axis letters as in ``dhp_jax.dot_product_attention``; batch... stands for any number of axes, also none.

        Args:
          query: floating point [batch..., T, N, D]; secret.
          key: [batch..., S, K, D], where K divides N; secret.
          value: like `key`; secret.
          bias: floating point, broadcastable to [batch..., N, T, S]; secret. Never expanded in memory.
          mask: any dtype, broadcastable likewise; a key takes part where it is not 0; secret. Never expanded in memory.
          is_causal: query t sees keys s <= t; public.
          query_seq_lengths: integer [batch...]; rows at or past it give 0; secret. Flax passes none; bind those of a
            call with ``functools.partial``.
          key_value_seq_lengths: integer [batch...]; keys at or past it take no part; secret. Likewise.
          dtype: query, key and value are cast to it; default: to the type that the three promote to.
          dropout_rate: must be 0 unless `deterministic`.
          deterministic: no dropout.
          dropout_rng: without effect.
          broadcast_dropout: without effect.
          precision: None or a ``jax.lax.Precision``, its name, or two of them; float32 arithmetic meets them all.
          force_fp32_for_softmax: without effect; the softmax always is float32.
          qk_attn_weights_einsum: must be None.
          attn_weights_value_einsum: must be None.
          module: must be None; Flax passes one to have the attention weights stored in it.
          **unknown: no other argument exists.

        Returns:
          [batch..., T, N, D] in the dtype that query, key and value were cast to.

        Raises:
          NotImplementedError: dropout, an algorithm as precision, an einsum, or a module came.
          TypeError: an argument is unknown; also as ``dhp_jax.dot_product_attention`` does.
          ValueError: shapes do not fit each other, or one query meets a cache under `is_causal` or a window.
        """
        del dropout_rng, broadcast_dropout, force_fp32_for_softmax
        _refuse_unknown(unknown)
        _refuse_dropout(dropout_rate, deterministic)
        _refuse_algorithm(precision)
        _refuse_weights(module, qk_attn_weights_einsum, attn_weights_value_einsum)

        dtype = jnp.result_type(query, key, value, 0.0) if dtype is None else dtype  # 0.0: integers become floats
        query, key, value = (jnp.asarray(array, dtype) for array in (query, key, value))
        arrays = {"query": query, "key": key, "value": value}
        optional = {
            "bias": bias,
            "mask": None if mask is None else jnp.asarray(mask).astype(bool),
            "query_seq_lengths": _without_wrapping(query_seq_lengths),
            "key_value_seq_lengths": _without_wrapping(key_value_seq_lengths),
        }
        arrays |= {name: jnp.asarray(array) for name, array in optional.items() if array is not None}
        _check_shapes(arrays)

        options = {
            "scale": self.scale,
            "is_causal": self.is_causal or is_causal,
            "local_window_size": self.local_window_size,
        }
        _refuse_positions_in_a_cache(query.shape[-3], key.shape[-3], options)
        return _map_batch(functools.partial(_attend, options), _with_all_axes(arrays), max(query.ndim - 4, 0))


def _attend(options: dict[str, Any], arrays: dict[str, Any]) -> Any:
    return dot_product_attention(**arrays, **options)


def _without_wrapping(lengths: Any) -> Any:
    """64-bit lengths of NumPy as the nearest of 32 bits, which compare alike: jnp.asarray drops the upper half."""
    is_of_numpy = isinstance(lengths, np.ndarray | np.generic)
    return np.clip(lengths, 0, 2**31 - 1) if is_of_numpy and lengths.dtype in (np.int64, np.uint64) else lengths


def _with_all_axes(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """At least one batch axis for lengths, and as many axes for bias and mask as for query."""

    def pad(name: str, array: jax.Array) -> jax.Array:
        rank = arrays["query"].ndim if name in ("bias", "mask") else 1
        return lax.expand_dims(array, range(rank - array.ndim))

    return {name: pad(name, array) for name, array in arrays.items()}


def _map_batch(
    attend: Callable[[dict[str, jax.Array]], jax.Array], arrays: dict[str, jax.Array], num_axes: int
) -> jax.Array:
    """Maps `attend` over the first axes; one of size 1 in bias or mask is shared, and so not copied."""
    if num_axes == 0:
        return attend(arrays)
    axes = {name: None if name in ("bias", "mask") and x.shape[0] == 1 else 0 for name, x in arrays.items()}
    arrays = {name: lax.squeeze(x, (0,)) if axes[name] is None else x for name, x in arrays.items()}
    return jax.vmap(lambda inner: _map_batch(attend, inner, num_axes - 1), in_axes=(axes,))(arrays)


def _check_shapes(arrays: dict[str, jax.Array]) -> None:
    query, key, value = (arrays[name].shape for name in ("query", "key", "value"))
    batch = query[:-3]
    if not len(query) == len(key) == len(value) >= 3 or not batch == key[:-3] == value[:-3]:
        raise ValueError(
            f"AttentionFn: query, key and value have shapes {query}, {key} and {value}; they must be (batch..., "
            "length, heads, D), with the same batch axes. Give all three the same axes before the last three."
        )
    scores = (*batch, query[-2], query[-3], key[-3])
    for name in ("bias", "mask"):
        shape = arrays[name].shape if name in arrays else ()
        aligned = (1,) * (len(scores) - len(shape)) + shape
        if len(shape) > len(scores) or any(size not in (1, full) for size, full in zip(aligned, scores, strict=True)):
            raise ValueError(
                f"AttentionFn: {name} has shape {shape}, which does not broadcast to (batch..., N, T, S) = {scores}; "
                "give every axis its full size or 1."
            )
    for name in ("query_seq_lengths", "key_value_seq_lengths"):
        if name in arrays and arrays[name].shape != batch:
            raise ValueError(
                f"AttentionFn: {name} has shape {arrays[name].shape}; it must be (batch...) = {batch}, one length for "
                "each sequence."
            )


def _refuse_positions_in_a_cache(num_queries: int, num_keys: int, options: dict[str, Any]) -> None:
    """Causal and window structure is aligned at the first query and key, where a cache has its oldest token."""
    if num_queries != 1 or num_keys == 1:
        return
    if options["is_causal"] or options["local_window_size"] is not None:
        raise ValueError(
            f"AttentionFn: is_causal={options['is_causal']} and local_window_size={options['local_window_size']} came "
            f"with 1 query and {num_keys} keys, as when a module decodes with a cache. They count positions from the "
            "first key, so that this query would see the start of the cache only. Decode with AttentionFn(): the "
            "module passes a mask of what the cache holds; a window goes into the mask of the call."
        )


def _refuse_unknown(unknown: dict[str, Any]) -> None:
    if unknown:
        raise TypeError(
            f"AttentionFn: unknown argument {', '.join(sorted(unknown))}; it may change the result, so it is not "
            "dropped. Leave it out, or pass as attention_fn a function of your own that applies it and calls an "
            "AttentionFn."
        )


def _refuse_dropout(rate: float, deterministic: bool) -> None:
    if rate > 0 and not deterministic:
        raise NotImplementedError(
            f"AttentionFn: dropout_rate={rate} came with deterministic={deterministic}; there is no dropout of "
            "attention weights, which are never stored. Build the module with dropout_rate=0.0 and drop its output "
            "instead, or run it with deterministic=True."
        )


def _refuse_algorithm(precision: Any) -> None:
    pair = precision if isinstance(precision, tuple | list) else (precision,)
    try:
        [lax.Precision(one) for one in pair]
    except (TypeError, ValueError) as error:
        raise NotImplementedError(
            f"AttentionFn: precision={precision!r} came; products are summed in float32 and no other algorithm can be "
            "chosen. Build the module with None or a jax.lax.Precision, which that meets."
        ) from error


def _refuse_weights(module: Any, qk_attn_weights_einsum: Any, attn_weights_value_einsum: Any) -> None:
    """What came is not shown: a module's text holds its arrays."""
    if module is not None:
        raise NotImplementedError(
            "AttentionFn: a module came to store attention weights in, and they are never stored. Call the module with "
            "sow_weights=False, or look at weights with Flax's own attention_fn."
        )
    if qk_attn_weights_einsum is not None or attn_weights_value_einsum is not None:
        raise NotImplementedError(
            "AttentionFn: qk_attn_weights_einsum or attn_weights_value_einsum came, and no einsum can take the place "
            "of the native products. Build the module without qk_attn_weights_einsum_cls and "
            "attn_weights_value_einsum_cls."
        )
