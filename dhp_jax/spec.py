"""Every public fact of one attention call, and every error that a caller can cause.

Axis letters: B batch, T query position, S key position, N query heads, K key/value heads, D channels of one head.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_CHANNELS = 256
MAX_LENGTH = 2**31 - 1 - 1024  # positions are compared as int32
MAX_SCALE = float(np.finfo(np.float32).max)
DTYPES = ("float32", "bfloat16", "float16")
BIAS_DTYPES = (*DTYPES, "float64")


class Arguments(NamedTuple):
    """The arrays of one call, all secret; absent ones are None.

    query [B, T, N, D]; key and value [B, S, K, D]; bias and mask [B|1, N|1, T|1, S|1]; lengths [B].
    """

    query: Any
    key: Any
    value: Any
    bias: Any = None
    mask: Any = None
    query_seq_lengths: Any = None
    key_value_seq_lengths: Any = None


@dataclasses.dataclass(frozen=True)
class Options:
    """The static options of a native call; also the attributes of its custom call.

    Key s takes part for query t only where ``t - band_left <= s <= t + band_right``.
    """

    scale: float
    band_left: int
    band_right: int
    has_bias: bool
    has_mask: bool
    has_query_lengths: bool
    has_key_value_lengths: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Everything about one attention call that is known while tracing.

    Every field is public: it may steer control flow, tile choice and launch shape. Array values are secret and may
    not. Building a spec checks that its values are allowed and fit each other: what is wrong raises ``ValueError`` or
    ``TypeError`` with what came, the rule and the way out.

    Attributes:
      batch: B; may be symbolic, in a program for export.
      query_length: T, padded.
      key_length: S, padded.
      num_query_heads: N, a multiple of `num_key_value_heads`.
      num_key_value_heads: K, which divides N.
      channels: D, 1 to 256.
      dtype: of query, key, value and the output: float32, bfloat16 or float16.
      scale: factor on the dot products, finite in float32.
      is_causal: a query sees no key after its own position, aligned top-left.
      local_window: how many positions back and ahead a query sees; None without limit.
      bias_shape: sizes of bias along B, N, T, S, each full or 1; None without bias.
      mask_shape: the same for mask.
      has_query_lengths: whether the queries have true lengths.
      has_key_value_lengths: whether the keys and values have true lengths.
    """

    batch: int
    query_length: int
    key_length: int
    num_query_heads: int
    num_key_value_heads: int
    channels: int
    dtype: str
    scale: float
    is_causal: bool = False
    local_window: tuple[int, int] | None = None
    bias_shape: tuple[int, ...] | None = None
    mask_shape: tuple[int, ...] | None = None
    has_query_lengths: bool = False
    has_key_value_lengths: bool = False

    @classmethod
    def from_arguments(
        cls, arguments: Arguments, *, scale: Any, is_causal: Any, local_window_size: Any
    ) -> AttentionSpec:
        """Checks the shapes, dtypes and options of one call and returns its public facts."""
        _check_arrays(arguments)
        query, key = arguments.query, arguments.key
        return cls(
            batch=key.shape[0],
            query_length=query.shape[1],
            key_length=key.shape[1],
            num_query_heads=query.shape[2],
            num_key_value_heads=key.shape[2],
            channels=key.shape[3],
            dtype=str(query.dtype),
            scale=_static_scale(scale, key.shape[3]),
            is_causal=static_bool("is_causal", is_causal, "Pass a causal pattern that is secret as mask."),
            local_window=_static_window(local_window_size),
            bias_shape=None if arguments.bias is None else arguments.bias.shape,
            mask_shape=None if arguments.mask is None else arguments.mask.shape,
            has_query_lengths=arguments.query_seq_lengths is not None,
            has_key_value_lengths=arguments.key_value_seq_lengths is not None,
        )

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TypeError(
                f"dot_product_attention: dtype is {shown(self.dtype)}; it must be one of {', '.join(DTYPES)}. "
                "Cast query, key and value first."
            )
        for name in ("batch", "query_length", "key_length", "num_query_heads", "num_key_value_heads", "channels"):
            size = getattr(self, name)
            if size < 0:
                raise ValueError(
                    f"dot_product_attention: {name} is {size}; it must be at least 0. Take it from an array's shape."
                )
        if self.num_key_value_heads < 1 or self.num_query_heads % self.num_key_value_heads:
            raise ValueError(
                f"dot_product_attention: {self.num_query_heads} query heads cannot be shared evenly by "
                f"{self.num_key_value_heads} key/value heads; make N a multiple of K, both at least 1."
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(
                f"dot_product_attention: the head dimension is {self.channels}; it must be from 1 to "
                f"{MAX_CHANNELS}. Use more heads of fewer channels."
            )
        if not abs(self.scale) <= MAX_SCALE:
            raise ValueError(
                f"dot_product_attention: scale is {shown(self.scale)}; it must be finite in float32, the dtype of the "
                "scores. Hide keys by mask or bias."
            )
        longest = max(self.query_length, self.key_length)
        if longest > MAX_LENGTH:
            raise ValueError(
                f"dot_product_attention: a sequence has length {longest}; it must be at most {MAX_LENGTH}. "
                "Split the sequence."
            )
        self._check_broadcast("bias", self.bias_shape)
        self._check_broadcast("mask", self.mask_shape)

    def _check_broadcast(self, name: str, shape: tuple[int, ...] | None) -> None:
        full = (self.batch, self.num_query_heads, self.query_length, self.key_length)
        if shape is None:
            return
        if len(shape) != 4 or any(size not in (1, whole) for size, whole in zip(shape, full, strict=True)):
            raise ValueError(
                f"dot_product_attention: {name} has shape {shape}, which does not broadcast to "
                f"(B, N, T, S) = {full}; give every axis its full size or 1."
            )

    @property
    def options(self) -> Options:
        """The static options of the native call."""
        left, right = self.local_window or (self.query_length, self.key_length)
        right = min(right, 0) if self.is_causal else right
        return Options(
            scale=self.scale,
            # Past these limits nothing changes any more; the native code may then add positions without overflow.
            band_left=min(max(left, -self.key_length), self.query_length),
            band_right=min(max(right, -self.query_length), self.key_length),
            has_bias=self.bias_shape is not None,
            has_mask=self.mask_shape is not None,
            has_query_lengths=self.has_query_lengths,
            has_key_value_lengths=self.has_key_value_lengths,
        )


def _check_arrays(arguments: Arguments) -> None:
    query, key, value, bias, mask, *lengths = arguments
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 4:
            raise ValueError(
                f"dot_product_attention: {name} has shape {array.shape}; it must be (B, length, heads, D) or "
                "(length, heads, D). Map further axes with jax.vmap, and give missing ones the size 1."
            )
        if not all(isinstance(size, int) for size in array.shape[1:]):
            raise ValueError(
                f"dot_product_attention: {name} has shape {array.shape}; all of it but the batch size must be known "
                "while tracing. Export a program for each shape."
            )
        if str(array.dtype) not in DTYPES:
            raise TypeError(
                f"dot_product_attention: {name} has dtype {array.dtype}; it must be one of {', '.join(DTYPES)}. "
                "Cast it first."
            )
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"dot_product_attention: query, key and value have dtypes {query.dtype}, {key.dtype} and "
            f"{value.dtype}; they must be equal. Cast them to one."
        )
    if key.shape != value.shape:
        raise ValueError(
            f"dot_product_attention: key has shape {key.shape} and value {value.shape}; they must be equal. Pad or "
            "slice one of them."
        )
    if (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]):
        raise ValueError(
            f"dot_product_attention: query has shape {query.shape} and key {key.shape}; their batch sizes and "
            "head dimensions (first and last axis) must be equal. Repeat, pad or slice one of them."
        )
    _check_score_arrays(bias, mask)
    for name, length in zip(("query_seq_lengths", "key_value_seq_lengths"), lengths, strict=True):
        _check_lengths(name, length, key.shape[0])


def _check_score_arrays(bias: Any, mask: Any) -> None:
    for name, array in (("bias", bias), ("mask", mask)):
        if array is not None and array.ndim != 4:
            raise ValueError(
                f"dot_product_attention: {name} has {array.ndim} axes (shape {array.shape}); it must have at most "
                "4 and broadcast to (B, N, T, S). Map further axes with jax.vmap."
            )
    if mask is not None and mask.dtype != jnp.bool_:
        raise TypeError(
            f"dot_product_attention: mask has dtype {mask.dtype}; it must be bool, True where a key takes part. "
            "Pass an additive mask as bias."
        )
    if bias is not None and str(bias.dtype) not in BIAS_DTYPES:
        raise TypeError(
            f"dot_product_attention: bias has dtype {bias.dtype}; it must be floating point: {', '.join(BIAS_DTYPES)}. "
            "Cast it, or pass a boolean mask as mask."
        )


def _check_lengths(name: str, lengths: Any, batch: int) -> None:
    if lengths is None:
        return
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"dot_product_attention: {name} has dtype {lengths.dtype}; it must be an integer type. Cast it."
        )
    if lengths.shape != (batch,):
        raise ValueError(
            f"dot_product_attention: {name} has shape {lengths.shape}; it must be (B,) = ({batch},), one length "
            "for each batch element. Repeat or slice it."
        )


def as_array(
    name: str, value: Any, convert: Callable[[Any], jax.Array] = jnp.asarray, caller: str = "dot_product_attention"
) -> jax.Array:
    """An argument of `caller` as an array; raises TypeError where `convert` makes none of it."""
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError) as error:
        dtype = f" and dtype {value.dtype}" if isinstance(value, np.ndarray) else ""
        raise TypeError(
            f"{caller}: {name} has type {type(value).__name__}{dtype}, of which JAX makes no array; it "
            "must be an array of a dtype that JAX knows, or nested lists of numbers. Convert it with jax.numpy.asarray."
        ) from error


def native_lengths(lengths: Any) -> jax.Array:
    """int32; an integer that does not fit becomes the nearest that does, so it compares as it did."""
    is_of_jax = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(lengths))
    # Without jax_enable_x64, jnp.asarray lets 64-bit integers of NumPy and Python wrap around: clip them before.
    array = jnp.asarray(lengths) if is_of_jax else np.asarray(lengths)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        return jnp.asarray(lengths)
    own, narrow = jnp.iinfo(array.dtype), jnp.iinfo(jnp.int32)
    if own.min < narrow.min or own.max > narrow.max:
        clip = jnp.clip if is_of_jax else np.clip
        array = clip(array, max(own.min, narrow.min), min(own.max, narrow.max))
    return jnp.asarray(array.astype(jnp.int32))


def _static_scale(scale: Any, channels: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(max(channels, 1))
    try:
        return float(_static_scalar(scale, "biufVO"))  # bfloat16 is V to NumPy, a fraction O
    except OverflowError:
        return math.inf
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"dot_product_attention: scale is {shown(scale)}; it is public and must be a number known while tracing. "
            "Multiply the query instead."
        ) from error


def static_bool(name: str, value: Any, way_out: str) -> bool:
    """An option as a bool; raises TypeError unless it is one, or 0 or 1, and known while tracing."""
    try:
        # Not by bool(value), for which the text "False" is true.
        return {0: False, 1: True}[_static_scalar(value, "biu").item()]
    except (TypeError, ValueError, KeyError) as error:
        raise TypeError(
            f"dot_product_attention: {name} is {shown(value)}; it is public and must be a bool known while tracing. "
            f"{way_out}"
        ) from error


def _static_scalar(value: Any, kinds: str) -> Any:
    """`value` as an array without axes, of one of NumPy's kinds of dtype; raises TypeError otherwise."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in kinds:
        raise TypeError(f"{array.dtype}{list(array.shape)} is no such scalar")
    return array


def _static_window(window: Any) -> tuple[int, int] | None:
    if window is None:
        return None
    try:
        left, right = window if isinstance(window, tuple | list) else (window, window)
        return operator.index(left), operator.index(right)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"dot_product_attention: local_window_size is {shown(window)}; it is public and must be an int or a pair "
            "of ints (left, right) known while tracing. Pass a pattern that is secret as mask."
        ) from error


_REPR = reprlib.Repr()
_REPR.maxother = _REPR.maxstring = 100


def shown(value: Any) -> str:
    """An option for a message, on one line and cut where it is long."""
    try:
        return " ".join(_REPR.repr(value).split())
    except ValueError:  # Python writes no int of more than some thousand digits
        return f"a value of type {type(value).__name__} too long to write"
