"""Drawn attention calls, good and bad ones, and which of them the contract allows.

Axis letters as everywhere: V mapped, B batch, T query position, S key position, N query heads, K key/value heads, D
channels. A call is drawn as a good one, with anything that the contract allows, and then spoiled in up to two places;
`is_legal` says from the call alone, by the words of the public docstring, whether it may still be taken.
"""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

SEQUENCES = ("query", "key", "value")
SCORES = ("bias", "mask")
LENGTHS = ("query_seq_lengths", "key_value_seq_lengths")
FLOATING = (*SEQUENCES, "bias")  # the arguments that have gradients

_SUPPORTED = ("float32", "bfloat16", "float16")
_OTHER_DTYPES = (
    *("float64", "float8_e4m3fn", "float8_e5m2", "int32", "int8", "uint8", "int64", "uint64", "bool", "complex64"),
    *("int4", "uint4"),
)
_MOST_CHANNELS = 256
_LONGEST = 2**31 - 1025
_INTEGERS = ("int32", "int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64", "int4")
_VALUES = ("normal", "nan", "inf", "subnormal", "huge")
_WITHOUT_X64 = {"float64": "float32", "int64": "int32", "uint64": "uint32", "complex128": "complex64"}
_OF_PYTHON = (
    (jnp.bool_, "bool"),
    (jnp.integer, "int64"),
    (jnp.floating, "float64"),
    (jnp.complexfloating, "complex128"),
)
_MOST_ON_HOST = 4096  # elements of an array that is passed with its values to an abstract evaluation


@dataclasses.dataclass(frozen=True)
class Array:
    """An array argument: `container` is traced, numpy, jax or list; `values` is one of _VALUES."""

    shape: tuple[int, ...]
    dtype: str
    container: str = "traced"
    values: str = "normal"

    @property
    def shape_of_rank_4(self) -> tuple[int, ...]:
        return (1,) * (4 - len(self.shape)) + self.shape

    def dtype_in_jax(self, x64: bool) -> str:
        """The dtype that JAX makes of it."""
        dtype = self.dtype
        if self.container == "list":
            dtype = next(python for kind, python in _OF_PYTHON if jnp.issubdtype(jnp.dtype(dtype), kind))
        return dtype if x64 else _WITHOUT_X64.get(dtype, dtype)

    def on_host(self, rng: np.random.Generator) -> np.ndarray:
        """The array with its values."""
        dtype = jnp.dtype(self.dtype)
        if self.dtype == "bool":
            return rng.random(self.shape) < 0.7
        if jnp.issubdtype(dtype, jnp.integer):
            limits, any_value = jnp.iinfo(dtype), self.values != "normal"
            low, high = (int(limits.min), int(limits.max)) if any_value else (max(limits.min, -3), min(limits.max, 70))
            # In a list, NumPy would make floats of integers past int64.
            high = min(high, 2**63 - 1) if self.container == "list" else high
            widest = "uint64" if limits.min == 0 else "int64"
            return rng.integers(low, high, self.shape, widest, endpoint=True).astype(dtype)
        array = rng.standard_normal(self.shape)
        odd = {"nan": math.nan, "inf": math.inf, "subnormal": 1e-39, "huge": 1e30}.get(self.values)
        if odd is not None:
            array = np.where(rng.random(self.shape) < 0.05, odd * rng.choice((-1, 1)), array)
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """An argument that is no array and no number."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Option:
    """The value of a static option, whether the contract allows it, and whether it is passed through jax.jit."""

    value: Any
    legal: bool = True
    traced: bool = False


@dataclasses.dataclass(frozen=True)
class Call:
    """A drawn call. `arguments` has Arrays and Foreign values, `options` what else was passed, by name.

    `transform` is plain, jit, grad or checkpoint. Around it, jax.vmap maps axis `in_axes[name]`, of size V
    `mapped_size`, which the shapes here do not have; where `in_axes` is empty there is no map. `x64` is jax_enable_x64.
    """

    arguments: dict[str, Array | Foreign]
    options: dict[str, Option]
    transform: str = "plain"
    mapped_size: int = 0
    in_axes: dict[str, int] = dataclasses.field(default_factory=dict)
    x64: bool = False

    def option(self, name: str) -> Any:
        """The value of an option; None where it was not passed."""
        return self.options[name].value if name in self.options else None

    def traced(self) -> dict[str, Array]:
        """The arrays that reach the call as tracers."""
        return {
            name: array
            for name, array in self.arguments.items()
            if isinstance(array, Array) and array.container == "traced"
        }

    def mapped_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a traced array with its mapped axis."""
        shape = self.arguments[name].shape
        if name not in self.in_axes:
            return shape
        axis = self.in_axes[name]
        return (*shape[:axis], self.mapped_size, *shape[axis:])


_FOREIGN = st.sampled_from(
    (
        *(None, "abc", b"abc", object(), {}, {1.0}, [[1.0, 2.0], [3.0]], [None], [2**70], range, 10**400),
        *(np.zeros((2, 5, 4, 8), object), np.zeros((2, 5, 4, 8), np.longdouble), np.zeros((2, 5, 4, 8), ">f4")),
        *(np.zeros(2, "M8[s]"), np.zeros(2, "U3"), np.zeros(2, [("a", "f4")]), np.ma.masked_array([1.0, 2.0], [0, 1])),
        *(jax.ShapeDtypeStruct((2, 5, 4, 8), jnp.float32), np.float32, jnp.float32, fractions.Fraction(1, 2)),
    )
)


def _good(*values: Any) -> Any:
    return st.sampled_from([Option(value) for value in values])


def _bad(*values: Any) -> Any:
    return st.sampled_from([Option(value, legal=False) for value in values])


_TRACED_OPTION = st.sampled_from(
    [Option(value, legal=False, traced=True) for value in (True, 1, 0.5, (1, 2), (1.0, 2.0))]
)
_SIMILAR = (math.nan, "False", "1", b"1", "", [], [1], (), {}, object(), np.ones(2), np.zeros(0), 1j, np.complex64(1))
_GOOD_OPTIONS = {
    "scale": st.one_of(
        _good(None, 0, 1, -1.5, True, 0.25, np.float16(0.5), np.array(0.5), jnp.bfloat16(0.5), 1e-50, 2**70),
        _good(fractions.Fraction(1, 3), decimal.Decimal("0.5")),
        st.floats(-2, 2).map(Option),
    ),
    "is_causal": _good(False, True, 0, 1, np.True_, np.array(False)),
    "return_residual": _good(False, True, 0, 1, np.False_, np.array(True)),
    "local_window_size": st.one_of(
        _good(None, 0, 3, True, 2**100, np.int32(3), np.array(2), -1, [1, 2], (2**62, -(2**62)), (np.int8(1), 0)),
        st.tuples(st.integers(-9, 9), st.integers(-9, 9)).map(Option),
        st.integers(-9, 9).map(Option),
    ),
}
_BAD_OPTIONS = {
    "scale": _bad(math.inf, -math.inf, 1e39, np.float64(1e300), 10**400, np.ones((2, 1, 1, 1)), *_SIMILAR),
    "is_causal": _bad(None, 2, -1, 0.5, 10**400, np.array([True]), *_SIMILAR),
    "return_residual": _bad(None, 2, -1, 0.5, np.array([True]), *_SIMILAR),
    "local_window_size": _bad((None, None), (1, None), 1.5, (1.5, 2), (1, 2, 3), np.array([3, 4]), "12", *_SIMILAR),
}
_UNKNOWN = st.one_of(
    st.tuples(st.just("implementation"), _bad("xla", "cudnn", None, "triton", 3, 10**400)),
    st.tuples(st.sampled_from(("window", "dropout_rate", "causal", "Scale")), _bad(None, 0, 0.1, "x")),
)


def _fits_host(shape: tuple[int, ...]) -> bool:
    # NumPy makes no array of huge sizes, not even where one is 0.
    return math.prod(size or 1 for size in shape) <= _MOST_ON_HOST


def _containers(shape: tuple[int, ...]) -> Any:
    if not _fits_host(shape):
        return st.just("traced")
    # A list has no axes after one of size 0.
    return st.sampled_from(("traced", "traced", "traced", "numpy", "jax", *(() if 0 in shape else ("list",))))


@st.composite
def calls(draw: Any, *, longest: int = _LONGEST, largest_batch: int = _LONGEST) -> Call:
    """Calls with no length above `longest` and no batch above `largest_batch`, or 9, before they are spoiled."""
    call = draw(_good_calls(longest, largest_batch))
    for _ in range(draw(st.integers(0, 2))):
        call = draw(st.sampled_from(_FLAWS))(draw, call, longest)
    return _transformed(draw, call)


def _sizes(largest: int) -> Any:
    ordinary = st.integers(1, 9)
    return st.one_of(ordinary, ordinary, st.sampled_from([s for s in _EDGES if s <= largest]))


_EDGES = (0, 1, 16, 63, 64, 65, 97, 129, 255, 256, 1000, 100_000, _LONGEST)


@st.composite
def _good_calls(draw: Any, longest: int, largest_batch: int) -> Call:
    B, T, S = draw(_sizes(largest_batch)), draw(_sizes(longest)), draw(_sizes(longest))  # noqa: N806
    K = draw(st.integers(1, 4))  # noqa: N806
    N = K * draw(st.integers(0, 3))  # noqa: N806
    D = draw(st.sampled_from((1, 3, 8, 8, 20, 64, 256)))  # noqa: N806
    dtype, x64 = draw(st.sampled_from(_SUPPORTED)), draw(st.integers(0, 7)) == 0
    full = (B, N, T, S)

    def array(shape: tuple[int, ...], dtype: str, may_drop: bool = False) -> Array:
        lead = 0
        while may_drop and lead < len(shape) and shape[lead] == 1:
            lead += 1
        shape = shape[draw(st.integers(0, lead)) :] if lead else shape
        container = draw(_containers(shape))
        return Array(shape, dtype, container, draw(st.sampled_from(("normal", "normal", *_VALUES))))

    arguments = {"query": array((B, T, N, D), dtype)} | {name: array((B, S, K, D), dtype) for name in ("key", "value")}
    if B == 1:
        squeezed = sorted(draw(st.sets(st.sampled_from(SEQUENCES))))
        arguments |= {name: dataclasses.replace(arguments[name], shape=arguments[name].shape[1:]) for name in squeezed}
    for name in sorted(draw(st.sets(st.sampled_from((*SCORES, *LENGTHS))))):
        if name in LENGTHS:
            arguments[name] = array((B,), draw(st.sampled_from(_INTEGERS)))
        else:
            keep = draw(st.lists(st.booleans(), min_size=4, max_size=4))
            shape = tuple(size if kept else 1 for size, kept in zip(full, keep, strict=True))
            kind = "bool" if name == "mask" else draw(st.sampled_from((*_SUPPORTED, "float64")))
            arguments[name] = array(shape, kind, may_drop=True)
    chosen = draw(st.sets(st.sampled_from(tuple(_GOOD_OPTIONS)), max_size=3))
    return Call(arguments, {name: draw(_GOOD_OPTIONS[name]) for name in sorted(chosen)}, x64=x64)


def _change(call: Call, name: str, **changes: Any) -> Call:
    array = call.arguments[name]
    changed = dataclasses.replace(array, **changes) if isinstance(array, Array) else array
    return dataclasses.replace(call, arguments=call.arguments | {name: changed})


def _reshape(call: Call, name: str, shape: tuple[int, ...]) -> Call:
    stays = _fits_host(shape) and 0 not in shape
    return _change(call, name, shape=shape, **({} if stays else {"container": "traced"}))


def _some_array(draw: Any, call: Call) -> str:
    return draw(st.sampled_from(sorted(call.arguments)))


def _resize(draw: Any, call: Call, longest: int) -> Call:
    name = _some_array(draw, call)
    array = call.arguments[name]
    if not isinstance(array, Array) or not array.shape:
        return call
    axis = draw(st.integers(0, len(array.shape) - 1))
    shape = list(array.shape)
    # 2**31 and 257 are past what we take; sizes stay small where the array has values.
    shape[axis] = draw(st.sampled_from((0, 1, 2, 3, 6, 8, min(257, longest), min(2**31, longest + 1))))
    return _reshape(call, name, tuple(shape))


def _resize_alike(draw: Any, call: Call, _: int) -> Call:
    """Another number of key/value heads or of channels, in all arrays that have them."""
    axis, size = draw(st.sampled_from(((-1, 0), (-1, 257), (-1, 300), (-2, 0), (-2, 3), (-2, 5))))
    for name in SEQUENCES if axis == -1 else SEQUENCES[1:]:
        array = call.arguments[name]
        if isinstance(array, Array) and len(array.shape) > 2:
            shape = list(array.shape)
            shape[axis] = size
            call = _reshape(call, name, tuple(shape))
    return call


def _change_rank(draw: Any, call: Call, _: int) -> Call:
    names = SEQUENCES if draw(st.booleans()) else (_some_array(draw, call),)
    by = draw(st.sampled_from((-4, -2, -1, 1, 2)))
    for name in names:
        if isinstance(call.arguments[name], Array):
            shape = call.arguments[name].shape
            call = _reshape(call, name, shape[-by:] if by < 0 else (1,) * by + shape)
    return call


def _change_dtype(draw: Any, call: Call, _: int) -> Call:
    names = SEQUENCES if draw(st.booleans()) else (_some_array(draw, call),)
    dtype = draw(st.sampled_from((*_SUPPORTED, *_OTHER_DTYPES)))
    for name in names:
        call = _change(call, name, dtype=dtype)
    return call


def _replace_by_foreign(draw: Any, call: Call, _: int) -> Call:
    name = draw(st.sampled_from((*SEQUENCES, *SCORES, *LENGTHS)))
    return dataclasses.replace(call, arguments=call.arguments | {name: Foreign(draw(_FOREIGN))})


def _spoil_option(draw: Any, call: Call, _: int) -> Call:
    name = draw(st.sampled_from(tuple(_BAD_OPTIONS)))
    option = draw(st.one_of(_BAD_OPTIONS[name], _BAD_OPTIONS[name], _TRACED_OPTION))
    return dataclasses.replace(call, options=call.options | {name: option})


def _add_unknown(draw: Any, call: Call, _: int) -> Call:
    name, option = draw(_UNKNOWN)
    return dataclasses.replace(call, options=call.options | {name: option})


_FLAWS = (
    *(_resize, _resize, _resize_alike, _change_rank, _change_dtype, _replace_by_foreign),
    *(_spoil_option, _spoil_option, _add_unknown),
)


def _transformed(draw: Any, call: Call) -> Call:
    transform = draw(st.sampled_from(("plain", "plain", "jit", "grad", "checkpoint")))
    if transform == "grad" and not differentiated(call):
        transform = "jit"
    call = dataclasses.replace(call, transform=transform)
    traced = call.traced()
    if not traced or draw(st.integers(0, 2)):
        return call
    names = draw(st.sets(st.sampled_from(sorted(traced)), min_size=1))
    in_axes = {name: draw(st.integers(0, len(traced[name].shape))) for name in sorted(names)}
    return dataclasses.replace(call, mapped_size=draw(st.sampled_from((0, 1, 2, 3))), in_axes=in_axes)


def differentiated(call: Call) -> tuple[str, ...]:
    """The arguments that `grad` differentiates by."""
    return tuple(
        name
        for name, array in call.traced().items()
        if name in FLOATING and array.dtype_in_jax(call.x64) in (*_SUPPORTED, "float64")
    )


def is_legal(call: Call) -> bool:
    """Whether the contract, the docstring of dot_product_attention, allows this call."""
    arguments = {name: x for name, x in call.arguments.items() if not _is_absent(name, x)}
    if not all(isinstance(x, Array) for x in arguments.values()) or not all(o.legal for o in call.options.values()):
        return False
    dtypes = {name: array.dtype_in_jax(call.x64) for name, array in arguments.items()}
    query, key, value = (arguments[name] for name in SEQUENCES)
    if not all(len(array.shape) in (3, 4) for array in (query, key, value)):
        return False
    if len({dtypes[name] for name in SEQUENCES}) > 1 or dtypes["query"] not in _SUPPORTED:
        return False
    (B, T, N, D), (_, S, K, _) = query.shape_of_rank_4, key.shape_of_rank_4  # noqa: N806
    if not key.shape_of_rank_4 == value.shape_of_rank_4 == (B, S, K, D):
        return False
    return (
        1 <= D <= _MOST_CHANNELS
        and (K >= 1 and N % K == 0)
        and max(T, S) <= _LONGEST
        and all(_is_broadcastable(arguments[name], (B, N, T, S)) for name in SCORES if name in arguments)
        and dtypes.get("bias", "float32") in (*_SUPPORTED, "float64")
        and dtypes.get("mask", "bool") == "bool"
        and all(arguments[name].shape == (B,) for name in LENGTHS if name in arguments)
        and all(jnp.issubdtype(jnp.dtype(dtypes[name]), jnp.integer) for name in LENGTHS if name in arguments)
    )


def _is_absent(name: str, argument: Any) -> bool:
    return name not in SEQUENCES and isinstance(argument, Foreign) and argument.value is None


def _is_broadcastable(array: Array, full: tuple[int, ...]) -> bool:
    return len(array.shape) <= 4 and all(
        size in (1, whole) for size, whole in zip(array.shape_of_rank_4, full, strict=True)
    )
