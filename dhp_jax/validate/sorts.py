"""Sorts of secrets: what values, lengths and masks of a call are. Each is a function that changes random arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dhp_jax.validate.calls import Call

Arrays = dict[str, Any]

FLOATING = ("query", "key", "value", "bias")
_SUBNORMAL = {"float32": 2e-39, "bfloat16": 2e-39, "float16": 1e-5}
_HUGE = {"float32": 1e30, "bfloat16": 1e30, "float16": 1e4}
_STEEP = 16.0  # the scores of a slope, scaled by 1 / sqrt(D), go from minus to plus as much


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


OF_VALUES: dict[str, Callable[[Call, Arrays], None]] = {
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
OF_LENGTHS: dict[str, Callable[[Call, Arrays], None]] = {
    "no keys": _lengths(_all, lambda size: 0),
    "one key": _lengths(_all, lambda size: 1),
    "half the keys": _lengths(_all, _half),
    "all keys": _lengths(_all, _all),
    "no queries": _lengths(lambda size: 0, _all),
    "half the queries": _lengths(_half, _all),
}
OF_MASKS: dict[str, Callable[[Call, Arrays], None]] = {
    "mask of nothing": _mask(lambda shape: np.zeros(shape, bool)),
    "mask of all": _mask(lambda shape: np.ones(shape, bool)),
    "diagonal mask": _mask(lambda shape: np.broadcast_to(np.eye(shape[-2], shape[-1]) > 0, shape).copy()),
}

# Sorts that switch fewer bits than random operands do, and so draw less power.
LESS_ACTIVE = frozenset({"zeros", "ones", "subnormal", "not finite", "huge", "one-hot"})
