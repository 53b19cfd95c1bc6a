"""A key/value cache for decoding: keys and values that are appended to, and attention over them.

An address that depends on a secret can be seen. So new tokens go to a position that is public, or to one that is
secret by an update that touches every row. How many rows are in use is secret either way: attention reads them all.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dhp_jax.attention import dot_product_attention
from dhp_jax.spec import AttentionSpec, as_array, native_lengths

_CALLER = "KVCache"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class KVCache:
    """The keys and values of the tokens that one attention layer has seen.

    ::

        cache = KVCache.create(B, S, K, D, dtype)
        cache = cache.append(key, value, 0).truncate(lengths)     # padded prompts; their true lengths are secret
        cache = cache.append_oblivious(key, value)                # each step: one token, where each sequence ends
        out = cache.attend(query)

    A cache is a pytree of its three arrays; every method returns a new one. Donate the old one to a jitted step
    (``donate_argnames``), and the new one takes its memory. Axis letters: B batch, T new tokens, S rows of the cache,
    N query heads, K key/value heads, D channels of one head.

    Public: shapes, dtypes, and the `position` of ``append``. Secret: the values of all three arrays.

    Attributes:
      key: float32, bfloat16 or float16 [B, S, K, D]; secret.
      value: same dtype and shape as `key`; secret.
      length: int32 [B], how many rows of each sequence are in use; secret. Also the position of its next token, to be
        read before that is appended. Above S where tokens did not fit: they were dropped, and the first S are there.
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array

    @classmethod
    def create(
        cls,
        batch: int,
        max_length: int,
        kv_heads: int,
        channels: int,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ) -> KVCache:
        """An empty cache. To make it sharded, jit this with `out_shardings`.

        Args:
          batch: B.
          max_length: S, the most tokens that a sequence can have; public. Every step does the work of S tokens.
          kv_heads: K.
          channels: D, 1 to 256. Unless it is a multiple of 8, every ``attend`` copies the whole cache to pad it.
          dtype: float32, bfloat16 or float16.

        Raises:
          ValueError: a size is negative, or not one that attention takes.
          TypeError: `dtype` is another.
        """
        AttentionSpec(  # attention must take such keys, from as many query heads
            batch=batch,
            query_length=1,
            key_length=max_length,
            num_query_heads=kv_heads,
            num_key_value_heads=kv_heads,
            channels=channels,
            dtype=str(jnp.dtype(dtype)),
            scale=1.0,
        )
        shape = (batch, max_length, kv_heads, channels)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))

    def append(self, key: jax.typing.ArrayLike, value: jax.typing.ArrayLike, position: jax.typing.ArrayLike) -> KVCache:
        """Writes T tokens to the rows from `position` on, the same rows for every sequence, which end there now.

        Who sees the addresses sees `position`. Costs what T tokens cost, whatever S is.

        Args:
          key: dtype of the cache, [B, T, K, D], T from 1 to S; secret.
          value: likewise.
          position: the row of the first one: an int, or an integer array without axes; public. ``length`` is not
            public: count the steps instead.

        Returns:
          The cache with `length` = `position` + T. From a position in an array, which may be known only when the
          program runs, tokens that would stand past the end (or before the start) are dropped: nothing is written in
          their place, nothing wraps around, and `length` is above S.

        Raises:
          ValueError: shapes do not fit the cache, or an int `position` leaves no room for T tokens.
          TypeError: a dtype is not that of the cache, or `position` is neither an int nor an integer without axes.
        """
        key, value = self._new_rows(key, value)
        position = _public_position(position, key.shape[1], self.key.shape[1])
        end = _end(self.length * 0 + position, key.shape[1], self.key.shape[1])  # * 0: sharded as before
        return _written_once(KVCache(_write(self.key, key, position), _write(self.value, value, position), end))

    def append_oblivious(self, key: jax.typing.ArrayLike, value: jax.typing.ArrayLike) -> KVCache:
        """Writes T tokens after those of each sequence, at its own secret position, ``length[b]``.

        Every row is read, and written as it was or new, by masks on its bits, so that no address depends on a position
        (SECURITY.md says how far that was checked of what XLA makes of it). That costs reading and writing the whole
        cache, 4 * B * S * K * D elements, twice what attention over it reads, and three operations for each element
        and token: it is meant for few tokens. A negative length counts as 0.

        Args:
          key: dtype of the cache, [B, T, K, D], T from 1 to S; secret.
          value: likewise.

        Returns:
          The cache with T added to `length`. Tokens that would stand past the end are dropped: nothing is written in
          their place, nothing wraps around, and `length` is above S.

        Raises:
          ValueError: shapes do not fit the cache.
          TypeError: a dtype is not that of the cache.
        """
        key, value = self._new_rows(key, value)
        position = jnp.maximum(self.length, 0)
        end = _end(position, key.shape[1], self.key.shape[1])
        key, value = (_write_oblivious(cache, rows, position) for cache, rows in ((self.key, key), (self.value, value)))
        return _written_once(KVCache(key, value, end))

    def truncate(self, length: jax.typing.ArrayLike) -> KVCache:
        """Keeps at most the first `length[b]` tokens of each sequence: drops the padding of prompts, or a draft.

        Args:
          length: integer [B]; secret. Any value is legal.

        Raises:
          ValueError: `length` does not have one number for each sequence.
          TypeError: it does not hold integers.
        """
        length = as_array("length", length, native_lengths, caller=_CALLER)
        if not jnp.issubdtype(length.dtype, jnp.integer):
            raise TypeError(f"KVCache: length has dtype {length.dtype}; it must be an integer type. Cast it.")
        if length.shape != self.length.shape:
            raise ValueError(
                f"KVCache: length has shape {length.shape}; it must be (B,) = {self.length.shape}, one length for each "
                "sequence. Repeat or slice it."
            )
        return dataclasses.replace(self, length=jnp.clip(length, 0, self.length))

    def attend(
        self,
        query: jax.typing.ArrayLike,
        bias: jax.typing.ArrayLike | None = None,
        mask: jax.typing.ArrayLike | None = None,
        *,
        scale: float | None = None,
    ) -> jax.Array:
        """``dot_product_attention`` of the last T tokens over the rows in use; the last of them sees all of these.

        Token t of the T, which are the last of each sequence and are appended before, sees the tokens up to itself,
        which is not what `is_causal` means: that counts positions from the first row. The work is that of S rows.

        Args:
          query: dtype of the cache, [B, T, N, D], T usually 1; secret. More take a mask of B * T * S bytes: for a long
            prompt call ``dot_product_attention(..., is_causal=True)`` on its own keys and values.
          bias: as for ``dot_product_attention``, broadcastable to [B, N, T, S]; secret.
          mask: likewise: True where a row takes part that is in use; secret.
          scale: likewise; public.

        Returns:
          The output, shape and dtype of `query`.

        Raises:
          ValueError, TypeError, NotImplementedError: as ``dot_product_attention`` does.
        """
        query = as_array("query", query)
        num_queries = query.shape[-3] if query.ndim >= 3 else 1
        if num_queries != 1:
            mask = self._causal_mask(num_queries, mask)
        out: Any = dot_product_attention(
            query, self.key, self.value, bias, mask, scale=scale, key_value_seq_lengths=self.length
        )
        return out

    def _causal_mask(self, num_queries: int, mask: Any) -> jax.Array:
        """Which rows, bool [B, 1, T, S], each of the last T tokens sees; `mask` hides more of them."""
        after = jnp.arange(num_queries - 1, -1, -1, dtype=jnp.int32)[:, None]  # how many tokens come after each
        row = jnp.arange(self.key.shape[1], dtype=jnp.int32)
        is_seen = row + after < self.length[:, None, None, None]
        # A mask of another dtype keeps it, and is refused below.
        return is_seen if mask is None else jnp.where(is_seen, as_array("mask", mask), False)

    def _new_rows(self, key: Any, value: Any) -> tuple[jax.Array, jax.Array]:
        rows = as_array("key", key, caller=_CALLER), as_array("value", value, caller=_CALLER)
        for name, array in zip(("key", "value"), rows, strict=True):
            self._check_rows(name, array)
        if rows[0].shape != rows[1].shape:
            raise ValueError(
                f"KVCache: {rows[0].shape[1]} keys and {rows[1].shape[1]} values came; there must be as many of both. "
                "Append those of the same tokens."
            )
        return rows

    def _check_rows(self, name: str, array: jax.Array) -> None:
        batch, max_length, heads, channels = self.key.shape
        num_tokens = array.shape[1] if array.ndim == 4 else 0
        if not 1 <= num_tokens <= max_length or array.shape != (batch, num_tokens, heads, channels):
            raise ValueError(
                f"KVCache: {name} has shape {array.shape}; it must be (B, T, K, D) = ({batch}, 1 to {max_length}, "
                f"{heads}, {channels}), as the cache was created. Give a single token T = 1, or create another cache."
            )
        if array.dtype != self.key.dtype:
            raise TypeError(
                f"KVCache: {name} has dtype {array.dtype} and the cache {self.key.dtype}; they must be equal. Cast it, "
                "or create the cache with its dtype."
            )


def _public_position(position: Any, num_tokens: int, max_length: int) -> int | jax.Array:
    """An int, in range, or int32 [], whatever its value."""
    if isinstance(position, int | np.integer) and not isinstance(position, bool):
        position = operator.index(position)
        if not 0 <= position <= max_length - num_tokens:
            raise ValueError(
                f"KVCache: {num_tokens} tokens at position {position} do not fit into a cache of {max_length} rows; "
                f"the position must be from 0 to {max_length - num_tokens}. Create the cache with a larger max_length."
            )
        return position
    array = as_array("position", position, native_lengths, caller=_CALLER)
    if array.ndim or not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"KVCache: position has dtype {array.dtype} and shape {array.shape}; it is public and must be an int, or "
            "an integer array without axes. Where each sequence has a position of its own, use append_oblivious."
        )
    return array


def _end(position: jax.Array, num_tokens: int, max_length: int) -> jax.Array:
    """The length after an append; above `max_length` if and only if tokens were dropped there."""
    return jnp.clip(position, -num_tokens, max_length) + num_tokens


def _written_once(cache: KVCache) -> KVCache:
    """Keeps XLA from computing the new cache once for the result and again for attention, with copies of all of it.

    Seen on the CPU with jax 0.12, for T = 1: attention takes its operands with one more axis, in a fusion of their own.
    """
    return jax.tree.map(lax.optimization_barrier, cache)  # one each: several vary along the same axes of a shard_map


def _write(cache: jax.Array, rows: jax.Array, position: int | jax.Array) -> jax.Array:
    """`cache` [B, S, K, D] with `rows` [B, T, K, D] from `position` on."""
    if isinstance(position, int):
        return lax.dynamic_update_slice_in_dim(cache, rows, position, axis=1)
    # JAX would move rows that stick out into the cache, over older ones. They are dropped, and the older ones kept.
    num_rows = rows.shape[1]
    start = jnp.clip(position, 0, cache.shape[1] - num_rows)
    ahead = position - start
    source = jnp.arange(num_rows, dtype=jnp.int32) - ahead
    is_inside = (source >= 0) & (source < num_rows)
    old = lax.dynamic_slice_in_dim(cache, start, num_rows, axis=1)
    rows = jnp.where(is_inside[:, None, None], jnp.roll(rows, ahead, axis=1), old)
    return lax.dynamic_update_slice_in_dim(cache, rows, start, axis=1)


@jax.custom_vjp
def _write_oblivious(cache: jax.Array, rows: jax.Array, position: jax.Array) -> jax.Array:
    """`cache` [B, S, K, D] with `rows` [B, T, K, D] from `position` [B] on.

    Of ``jnp.where`` on a donated cache, XLA makes on the CPU a branch on each row, and a store to the secret one alone.
    So masks of whole words choose between the bits. The barrier keeps other computations out of this loop.
    """
    rows, masks = lax.optimization_barrier((rows, _row_masks(cache, rows, position)))
    words = masks[0].dtype
    result = lax.bitcast_convert_type(cache, words)
    for token, is_here in enumerate(masks):
        row = lax.bitcast_convert_type(rows[:, token : token + 1], words)
        result = result ^ ((result ^ row) & is_here[..., None, None])
    return lax.bitcast_convert_type(result, cache.dtype)


def _row_masks(cache: jax.Array, rows: jax.Array, position: jax.Array) -> list[jax.Array]:
    """For each of the T rows, where in the cache it goes: words [B, S] of the size of an element, all ones or 0.

    Whoever compiles a loop that selects by a comparison may make a branch of it, in whatever form the comparison comes.
    A sum over positions is a loop of its own, and of its results the next one does not know that they are ones or 0.
    """
    words, length = jnp.dtype(f"uint{8 * cache.dtype.itemsize}"), cache.shape[1]
    distance = jnp.arange(length, dtype=jnp.int32) - position[:, None]
    first = lax.cumsum((distance == 1).astype(words) - (distance == 0).astype(words), axis=1)
    return [jnp.pad(first, ((0, 0), (token, 0)))[:, :length] for token in range(rows.shape[1])]


def _write_oblivious_fwd(cache: jax.Array, rows: jax.Array, position: jax.Array) -> tuple[jax.Array, Any]:
    return _write_oblivious(cache, rows, position), (rows, position)


def _write_oblivious_bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    rows, position = residuals
    masks = lax.optimization_barrier(_row_masks(cotangent, rows, position))
    bits = lax.bitcast_convert_type(cotangent, masks[0].dtype)
    of_rows = [
        lax.bitcast_convert_type(bits & is_here[..., None, None], cotangent.dtype).sum(axis=1, keepdims=True)
        for is_here in masks
    ]
    return _write_oblivious(cotangent, jnp.zeros_like(rows), position), jnp.concatenate(of_rows, axis=1), None


_write_oblivious.defvjp(_write_oblivious_fwd, _write_oblivious_bwd)
