"""Attention calls that the gates look at, and the sorts of secrets that they are made with.

All secrets of a call have the same shapes and dtypes: the sorts differ in values alone. Axis letters as everywhere:
B batch, T query position, S key position, N query heads, K key/value heads, D channels.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dhp_jax

Arrays = dict[str, Any]

FLOATING = ("query", "key", "value", "bias")
OPERANDS = ("bias", "mask", "query_seq_lengths", "key_value_seq_lengths")
_SUBNORMAL = {"float32": 2e-39, "bfloat16": 2e-39, "float16": 1e-5}
_CHANNELS = (64, 128, 256)  # up to each of them, kernels are instances of their own
_BETWEEN = (96, 192)  # the same for plain scores on compute capability 9.0
_MANY_KEYS = 2100  # more than kFewKeys of cuda/launch/launch_sm90.cu, and than attention_fwd_small_sm90 takes
_MANY_HEADS = 40  # with the sizes of a Call, more blocks than attention_fwd_small_sm90 takes on any GPU
_FEW_TOKENS = 3  # attention_fwd_decode_sm90 takes them; with _CACHE keys in parts
_CACHE = 1000
_STEEP = 16.0  # the scores of a slope, scaled by 1 / sqrt(D), go from minus to plus as much
_HUGE = {"float32": 1e30, "bfloat16": 1e30, "float16": 1e4}


@dataclasses.dataclass(frozen=True)
class Call:
    """One attention call.

    Attributes:
        dtype: of query, key and value.
        channels: D.
        operands: whether bias, mask and both lengths are there.
        lengths: whether both lengths are there, alone.
        is_causal: as in dot_product_attention.
        has_gradients: whether the backward pass runs too.
        B, T, S, N, K: sizes.
    """

    dtype: str
    channels: int
    operands: bool = False
    lengths: bool = False
    is_causal: bool = False
    has_gradients: bool = True
    B: int = 2
    T: int = 130
    S: int = 190
    N: int = 4
    K: int = 2

    @property
    def name(self) -> str:
        """Such as "bfloat16-64-operands"."""
        traits = {
            "operands": self.operands,
            "lengths": self.lengths,
            "causal": self.is_causal,
            "no-keys": self.S == 0,
            "many-keys": self.S >= _MANY_KEYS,
            "many-heads": self.N >= _MANY_HEADS,
            "few-tokens": self.T <= _FEW_TOKENS,
        }
        return "-".join([self.dtype, str(self.channels), *(trait for trait, holds in traits.items() if holds)])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array, by the name of its argument; d_out is the cotangent of the output."""
        key = (self.B, self.S, self.K, self.channels)
        query = (self.B, self.T, self.N, self.channels)
        shapes: dict[str, tuple[int, ...]] = {"query": query, "key": key, "value": key}
        if self.operands:
            shapes |= {"bias": (1, self.N, self.T, self.S), "mask": (self.B, 1, self.T, self.S)}
        if self.operands or self.lengths:
            shapes |= {"query_seq_lengths": (self.B,), "key_value_seq_lengths": (self.B,)}
        return shapes | {"d_out": query}

    def secrets(self) -> tuple[str, ...]:
        """The sorts of secrets that this call can be made with; "random" is the first."""
        of_lengths = tuple(_OF_LENGTHS) if self.operands or self.lengths else ()
        return (*_OF_VALUES, *of_lengths, *(_OF_MASKS if self.operands else ()))

    def arrays(self, secret: str, seed: int = 0) -> Arrays:
        """All arrays of the call, NumPy, of one sort of secrets."""
        rng = np.random.default_rng(seed)
        arrays: Arrays = {name: rng.standard_normal(shape) for name, shape in self.shapes.items()}
        if self.operands:
            arrays["mask"] = rng.random(self.shapes["mask"]) < 0.8
        if self.operands or self.lengths:
            arrays["query_seq_lengths"] = rng.integers(1, self.T + 1, self.B)
            arrays["key_value_seq_lengths"] = rng.integers(min(1, self.S), self.S + 1, self.B)
        change = (_OF_VALUES | _OF_LENGTHS | _OF_MASKS)[secret]
        with np.errstate(over="ignore", invalid="ignore"):
            change(self, arrays)
            return {name: array.astype(self._dtype(name)) for name, array in arrays.items()}

    def _dtype(self, name: str) -> Any:
        if name == "mask":
            return np.dtype(bool)
        if name.endswith("lengths"):
            return np.dtype(np.int32)
        return jnp.dtype("float32" if name == "bias" else self.dtype)

    def program(self) -> Callable[[Arrays], dict[str, jax.Array]]:
        """The jitted function of `arrays`: output, log-sum-exp, and with gradients that of every floating argument."""

        @jax.jit
        def run(arrays: Arrays) -> dict[str, jax.Array]:
            floating = {name: arrays[name] for name in FLOATING if name in arrays}
            fixed = {name: arrays[name] for name in OPERANDS if name in arrays and name != "bias"}

            def attend(floating: Arrays) -> Any:
                return dhp_jax.dot_product_attention(
                    **floating, **fixed, is_causal=self.is_causal, return_residual=True
                )

            if not self.has_gradients:
                out, lse = attend(floating)
                return {"out": out, "lse": lse}
            out, pull_back, lse = jax.vjp(attend, floating, has_aux=True)
            (gradients,) = pull_back(arrays["d_out"])
            return {"out": out, "lse": lse} | {f"d_{name}": array for name, array in gradients.items()}

        return run


def calls(dtype: str) -> list[Call]:
    """The calls that together, with those of forward_calls, run every kernel of one dtype."""
    return [Call(dtype, channels, operands) for channels in _CHANNELS for operands in (False, True)]


def forward_calls(dtype: str) -> list[Call]:
    """Calls, without gradients, that run other kernels than those of `calls`.

    On compute capability 9.0 16-bit dtypes have a kernel for few rows and keys, which takes the calls of `calls` that
    have no operands and up to 128 channels; one for more, with instances for a band, for lengths alone, for all
    operands and, with 128 channels, for more than 2048 keys; and one for few tokens. Those for 8.0 run there where
    there is no key.
    """
    if dtype == "float32":
        return []
    forward = functools.partial(Call, dtype, has_gradients=False)
    found = []
    for channels in _CHANNELS:
        for is_causal in (False, True):
            found.append(forward(channels, is_causal=is_causal, N=_MANY_HEADS))
            found.append(forward(channels, lengths=True, is_causal=is_causal))
        found += [forward(channels, operands, S=0) for operands in (False, True)]
        found.append(forward(channels, True, T=_FEW_TOKENS, S=_CACHE))
        if channels <= 128:
            found.append(forward(channels, is_causal=True))
        if channels == 64:
            found += [forward(channels, is_causal=is_causal, S=_MANY_KEYS) for is_causal in (False, True)]
        if channels == 128:
            found += [forward(channels, lengths=lengths, S=_MANY_KEYS) for lengths in (False, True)]
    for channels in _BETWEEN:
        found += [forward(channels, is_causal=is_causal, N=_MANY_HEADS) for is_causal in (False, True)]
    return [*found, forward(_BETWEEN[0], S=_MANY_KEYS)]


def to_text(call: Call) -> str:
    """A call for the command line of another process."""
    return json.dumps(dataclasses.asdict(call))


def from_text(text: str) -> Call:
    """The call that to_text wrote."""
    return Call(**json.loads(text))


def _fill(value: float) -> Callable[[Call, Arrays], None]:
    def change(call: Call, arrays: Arrays) -> None:
        for name in (*FLOATING, "d_out"):
            if name in arrays:
                arrays[name] = np.full_like(arrays[name], value)

    return change


def _subnormal(call: Call, arrays: Arrays) -> None:
    for name in ("query", "key", "value", "d_out"):
        arrays[name] = arrays[name] * _SUBNORMAL[call.dtype]


def _huge(call: Call, arrays: Arrays) -> None:
    for name in ("query", "key", "value"):
        arrays[name] = arrays[name] * _HUGE[call.dtype]


def _not_finite(call: Call, arrays: Arrays) -> None:
    for name in ("query", "key", "value", "d_out"):
        flat = arrays[name].reshape(-1)
        flat[0::7], flat[1::7], flat[2::7] = np.nan, np.inf, -np.inf


def _reversed(call: Call, arrays: Arrays) -> None:
    for name in (*FLOATING, "d_out"):
        if name in arrays:
            arrays[name] = arrays[name].reshape(-1)[::-1].reshape(arrays[name].shape).copy()


def _slope(sign: float) -> Callable[[Call, Arrays], None]:
    """Scores that rise, or fall, with the key's position: the running maximum moves in every tile, or never.

    All operands stay random beside what makes the slope, so that they draw as much power as random ones.
    """

    def change(call: Call, arrays: Arrays) -> None:
        along = sign * np.linspace(-_STEEP, _STEEP, call.S)[None, :, None, None]
        arrays["query"] = arrays["query"] + 1
        arrays["key"] = arrays["key"] + along / np.sqrt(call.channels)

    return change


def _one_hot(call: Call, arrays: Arrays) -> None:
    arrays["query"] = np.ones_like(arrays["query"])
    arrays["key"] = np.zeros_like(arrays["key"])
    arrays["key"][:, call.S // 3 : call.S // 3 + 1] = 30.0


def _all(size: int) -> int:
    return size


def _half(size: int) -> int:
    return size // 2


def _lengths(queries: Callable[[int], int], keys: Callable[[int], int]) -> Callable[[Call, Arrays], None]:
    def change(call: Call, arrays: Arrays) -> None:
        arrays["query_seq_lengths"] = np.full(call.B, queries(call.T))
        arrays["key_value_seq_lengths"] = np.full(call.B, keys(call.S))

    return change


def _mask(make: Callable[[tuple[int, ...]], Any]) -> Callable[[Call, Arrays], None]:
    def change(call: Call, arrays: Arrays) -> None:
        arrays["mask"] = make(arrays["mask"].shape)

    return change


_OF_VALUES: dict[str, Callable[[Call, Arrays], None]] = {
    "random": lambda call, arrays: None,
    "reversed": _reversed,
    "zeros": _fill(0.0),
    "ones": _fill(1.0),
    "subnormal": _subnormal,
    "not finite": _not_finite,
    "huge": _huge,
    "rising scores": _slope(1.0),
    "falling scores": _slope(-1.0),
    "one-hot": _one_hot,
}
_OF_LENGTHS: dict[str, Callable[[Call, Arrays], None]] = {
    "no keys": _lengths(_all, lambda size: 0),
    "one key": _lengths(_all, lambda size: 1),
    "half the keys": _lengths(_all, _half),
    "all keys": _lengths(_all, _all),
    "no queries": _lengths(lambda size: 0, _all),
    "half the queries": _lengths(_half, _all),
}
_OF_MASKS: dict[str, Callable[[Call, Arrays], None]] = {
    "mask of nothing": _mask(lambda shape: np.zeros(shape, bool)),
    "mask of all": _mask(lambda shape: np.ones(shape, bool)),
    "diagonal mask": _mask(lambda shape: np.broadcast_to(np.eye(shape[-2], shape[-1]) > 0, shape).copy()),
}

# Sorts that switch fewer bits than random operands do, and so draw less power.
LESS_ACTIVE = frozenset({"zeros", "ones", "subnormal", "not finite", "huge", "one-hot"})
