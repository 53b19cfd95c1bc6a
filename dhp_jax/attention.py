"""The public function: arguments in jax.nn's form, normalised, differentiated once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from dhp_jax import partition
from dhp_jax.primitive import CHECKPOINT_NAMES, NO_DERIVATIVE, call_native
from dhp_jax.spec import Arguments, AttentionSpec, Options, as_array, native_lengths, shown, static_bool

_CHANNEL_MULTIPLE = 8  # the native code takes channels in multiples of this


def dot_product_attention(
    query: jax.typing.ArrayLike,
    key: jax.typing.ArrayLike,
    value: jax.typing.ArrayLike,
    bias: jax.typing.ArrayLike | None = None,
    mask: jax.typing.ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.typing.ArrayLike | None = None,
    key_value_seq_lengths: jax.typing.ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    return_residual: bool = False,
    **unsupported: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""Scaled dot-product attention whose execution does not depend on any array's values.

    Computes :math:`\mathrm{softmax}(\mathrm{scale} \cdot Q K^T + \mathrm{bias}) V` for each head, like
    :func:`jax.nn.dot_product_attention` and with its arguments. Scores, softmax and sums are float32.

    Axis letters: B batch, T query position, S key position, N query heads, K key/value heads (K divides N; query
    head n uses key/value head n // (N / K)), D channels of one head, 1 to 256.

    Public, and free to steer the execution: shapes, dtypes, which optional arguments are there, and the options
    `scale`, `is_causal`, `local_window_size`, `return_residual`. Secret: the values of every array. Work is always
    done for the padded lengths.

    Args:
      query: float32, bfloat16 or float16 [B, T, N, D] or [T, N, D]; secret.
      key: same dtype, [B, S, K, D] or [S, K, D]; secret.
      value: same dtype and shape as `key`; secret.
      bias: one of these dtypes or float64, broadcastable to [B, N, T, S]; added to the scaled scores; secret. Never
        expanded in memory.
      mask: bool, broadcastable to [B, N, T, S]; True where a key takes part; secret. Never expanded in memory.
      scale: factor on the dot products; default 1 / sqrt(D); a number, finite in float32, public.
      is_causal: query t sees keys s <= t (aligned top-left, also where T != S); public.
      query_seq_lengths: integer [B]; rows t at or past it give 0; secret. Any value is legal.
      key_value_seq_lengths: integer [B]; keys at or past it take no part; secret. Any value is legal.
      local_window_size: (left, right): query t sees keys t - left <= s <= t + right; an int w means (w, w); public.
      return_residual: also return the log-sum-exp of the scores; public.
      **unsupported: no other argument exists; `implementation` is refused with a reason.

    Returns:
      The output, shape and dtype of `query`. With `return_residual`, a pair (output, log-sum-exp), the second
      float32 [B, T, N] or [T, N], natural logarithm; no gradient passes through it.

    Raises:
      TypeError: an argument has a wrong type or dtype, an option is not known while tracing, or an argument is unknown.
      ValueError: shapes do not fit each other, or `scale` is not finite.
      NotImplementedError: a second or a forward-mode derivative is taken (forward mode under jit raises JAX's own
        TypeError), or the program is lowered for another platform than CPU and CUDA, or for CUDA by an installation
        without CUDA kernels.

    Differences from ``jax.nn.dot_product_attention``:
      * A row in which no key takes part (by mask, lengths, window, or a bias of -inf) gives 0, log-sum-exp -inf and
        zero gradients; jax.nn gives the mean of all values, or NaN.
      * The log-sum-exp is float32; jax.nn casts it to the dtype of `key`.
      * Memory is O(T + S); nothing of size T x S is made, save operands passed at that size.
      * With sequence lengths, non-finite values past a length change no valid row, forward or backward.
      * float32 subnormals count as 0.
      * Keys that the causal or window structure hides from a whole tile of queries are not read, so a NaN in their
        value rows reaches fewer rows than in jax.nn.
      * A score of -inf has a zero gradient also in a row that an infinite query makes NaN; jax.nn gives NaN.
      * Refused here, taken by jax.nn: query, key and value with less than 3 axes, of an integer, complex or float64
        dtype, with D = 0 or D > 256, or with a length above 2**31 - 1025; a bias that is not floating point; a bias or
        mask of several keys where S = 1; a `scale` that is not finite, is traced or has axes; a window of floats or in
        an array; a flag that is not a bool, such as None or the text "False"; symbolic sizes other than B.
      * Taken here, refused by jax.nn: lengths of any integer dtype, windows of any integer dtype and size.

    Under ``jax.vmap`` an argument that is not mapped is not copied. Under sharded ``jax.jit``, batch and heads stay
    sharded; a sharded sequence is gathered. Under ``jax.checkpoint``, the policy
    ``save_only_these_names(*dhp_jax.CHECKPOINT_NAMES)`` keeps the backward pass from running the forward again.
    """
    _refuse_unknown(unsupported)
    query = as_array("query", query)
    arguments = _normalise(query, key, value, bias, mask, query_seq_lengths, key_value_seq_lengths)
    spec = AttentionSpec.from_arguments(
        arguments, scale=scale, is_causal=is_causal, local_window_size=local_window_size
    )
    with_residual = static_bool("return_residual", return_residual, "Leave it out, or close over it.")
    with _explained_forward_mode():
        out, lse = _attention(spec.options, _vary_alike(_gather_sequences(_pad_channels(arguments))))
    out = out[..., : spec.channels].reshape(query.shape)
    if not with_residual:
        return out
    return out, lax.stop_gradient(lse).reshape(query.shape[:-1])


@contextlib.contextmanager
def _explained_forward_mode() -> Iterator[None]:
    """Replaces JAX's message about forward mode, which speaks of a custom_vjp that the caller never wrote."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise NotImplementedError(NO_DERIVATIVE) from error


def _refuse_unknown(unsupported: dict[str, Any]) -> None:
    if "implementation" in unsupported:
        raise TypeError(
            f"dot_product_attention: implementation={shown(unsupported['implementation'])} was passed; dhp_jax has one "
            "implementation for each platform, so that no call falls back to one that is not constant-time. Leave "
            "the argument out."
        )
    if {"deterministic", "dropout_rate"} <= unsupported.keys():
        raise TypeError(
            "dot_product_attention: deterministic and dropout_rate came, as Flax's attention modules pass them; it "
            "takes the arguments of jax.nn only. Pass attention_fn=dhp_jax.flax.AttentionFn() to the module."
        )
    if unsupported:
        raise TypeError(
            f"dot_product_attention: unknown argument {', '.join(sorted(unsupported))}; the arguments are those of "
            "jax.nn.dot_product_attention without implementation. Leave it out."
        )


def _normalise(
    query: Any, key: Any, value: Any, bias: Any, mask: Any, query_lengths: Any, key_value_lengths: Any
) -> Arguments:
    """Arrays in the form that Arguments documents; leading axes of size 1 are added as jax.nn does."""

    def with_rank_4(name: str, value: Any, lowest_rank: int = 0) -> jax.Array:
        array = as_array(name, value)
        return lax.expand_dims(array, range(4 - array.ndim)) if lowest_rank <= array.ndim < 4 else array

    return Arguments(
        # Below rank 3 it is not clear which axes the caller means: they stay as they are, and are refused.
        query=with_rank_4("query", query, lowest_rank=3),
        key=with_rank_4("key", key, lowest_rank=3),
        value=with_rank_4("value", value, lowest_rank=3),
        bias=None if bias is None else _native_bias(with_rank_4("bias", bias)),
        mask=None if mask is None else with_rank_4("mask", mask),
        query_seq_lengths=_lengths("query_seq_lengths", query_lengths),
        key_value_seq_lengths=_lengths("key_value_seq_lengths", key_value_lengths),
    )


def _native_bias(bias: jax.Array) -> jax.Array:
    """float64, which the native code does not read, becomes float32, the dtype of the scores."""
    return bias.astype(jnp.float32) if bias.dtype == jnp.float64 else bias


def _lengths(name: str, lengths: Any) -> jax.Array | None:
    return None if lengths is None else as_array(name, lengths, native_lengths)


def _pad_channels(arguments: Arguments) -> Arguments:
    """Zeros up to a multiple of 8 channels: they add nothing to a dot product, and their outputs are cut off."""
    missing = -arguments.query.shape[-1] % _CHANNEL_MULTIPLE
    if not missing:
        return arguments

    def pad(array: jax.Array) -> jax.Array:
        return jnp.pad(array, ((0, 0), (0, 0), (0, 0), (0, missing)))

    return arguments._replace(query=pad(arguments.query), key=pad(arguments.key), value=pad(arguments.value))


def _gather_sequences(arguments: Arguments) -> Arguments:
    """Under explicit sharding, takes the sequence and channel axes out of the sharded ones."""
    letters = Arguments("btnd", "bskd", "bskd", "bnts", "bnts", "b", "b")
    return Arguments(
        *(
            array if array is None else partition.gather_sequences(array, axes)
            for array, axes in zip(arguments, letters, strict=True)
        )
    )


def _vary_alike(arguments: Arguments) -> Arguments:
    """Inside shard_map, gives every array the union of the mesh axes along which any of them varies.

    The results of a primitive vary along that union, and so do gradients before they are summed over the axes along
    which their argument does not vary. A select between an array and itself, on a condition that is always false
    but formally varies, is the way to say so that works in every supported jax; XLA removes it.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return arguments
    conditions = [lax.bitwise_and(jnp.any(x != x), False) for x in arguments if x is not None]
    varying = functools.reduce(lax.bitwise_or, conditions)
    return jax.tree.map(lambda x: lax.select_n(varying, x, x), arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options: Options, arguments: Arguments) -> tuple[jax.Array, jax.Array]:
    """Attention [B, T, N, D] and log-sum-exp [B, T, N], D a multiple of 8."""
    out, row_max, log_sum = _run_forward(options, arguments)
    return out, row_max + log_sum


def _run_forward(options: Options, arguments: Arguments) -> tuple[jax.Array, ...]:
    results = call_native("attention_fwd", options, _add_mapped_axis(arguments))
    return tuple(lax.squeeze(result, (0,)) for result in results)


def _attention_fwd(options: Options, arguments: Arguments) -> tuple[Any, Any]:
    results = zip(_run_forward(options, arguments), CHECKPOINT_NAMES, strict=True)
    out, row_max, log_sum = (checkpoint_name(result, name) for result, name in results)
    # The backward pass keeps the two apart: their sum would lose log_sum to rounding under a bias of, say, -1e9.
    return (out, row_max + log_sum), (arguments, out, row_max, log_sum)


def _attention_bwd(options: Options, residuals: Any, cotangents: Any) -> tuple[Arguments]:
    arguments, *results = residuals
    operands = _add_mapped_axis((*arguments, *results, *cotangents))
    d_query, d_key, d_value, _ = call_native("attention_bwd", options, operands)
    gradients = Arguments(lax.squeeze(d_query, (0,)), lax.squeeze(d_key, (0,)), lax.squeeze(d_value, (0,)))
    if arguments.bias is not None:
        # A call of its own, which dead-code elimination drops where nobody asks for the gradient of bias.
        d_bias, _ = call_native("attention_bwd_bias", options, operands)
        gradients = gradients._replace(bias=lax.squeeze(d_bias, (0,)))
    return (gradients,)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _add_mapped_axis(arrays: Any) -> list[jax.Array]:
    return [lax.expand_dims(array, (0,)) for array in arrays if array is not None]
