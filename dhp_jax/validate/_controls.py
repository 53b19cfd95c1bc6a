"""libdhp_controls: kernels that leak or do not repeat, on purpose, and a stopwatch in cycles around those that ship.

Nothing but this package loads it, and the verdict on the shipped kernels does not look at it: cuda/controls has the
sources.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib
from typing import Any

import numpy as np

from dhp_jax.validate.calls import Call
from dhp_jax.validate.sorts import Arrays
from dhp_jax.verify import UnverifiableError
from dhp_jax.verify.__main__ import installed_library

LIBRARY = "libdhp_controls"
FORWARD, BACKWARD, DELAYED, LEAK = range(4)  # DhpControlWork in cuda/controls/controls.h

_DTYPES = ("float32", "bfloat16", "float16")  # as dhp::DType counts them
_OFFSETS = ("query", "key", "value", "bias", "mask", "query_seq_lengths", "key_value_seq_lengths", "d_out")
_ALIGNMENT = 256  # of an operand, in bytes
_LEAK_ROWS, _LEAK_COLUMNS = 132, 1024
_LAST = 16  # bytes kept free at the end of a block; the stopwatch reads the last 8


class ControlsError(RuntimeError):
    """The library is not there, or it could not do what it was asked for."""


class _Call(ctypes.Structure):
    """DhpControlCall."""

    _fields_ = (
        *((axis, ctypes.c_int64) for axis in "BTSNKD"),
        ("dtype", ctypes.c_int32),
        ("is_causal", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("repeats", ctypes.c_int32),
        ("rest", ctypes.c_int64),
        ("offsets", ctypes.c_int64 * len(_OFFSETS)),
    )


def library() -> pathlib.Path:
    """Where the library lies; raises ControlsError where it was not built."""
    try:
        return installed_library(LIBRARY)
    except UnverifiableError:
        raise ControlsError(
            "dhp_jax.validate: libdhp_controls is not installed; it is built with the CUDA kernels. Reinstall with "
            "DHP_CUDA=1 set."
        ) from None


def objection() -> str:
    """Why there are no controls; empty where there are."""
    try:
        library()
    except ControlsError as problem:
        return str(problem)
    return ""


@functools.cache
def _loaded() -> Any:
    loaded = ctypes.CDLL(str(library()))
    for name in ("time", "count_sms", "leak", "unordered_sum"):
        getattr(loaded, f"dhp_controls_{name}").restype = ctypes.c_char_p
    return loaded


def _run(name: str, *arguments: Any) -> None:
    said = getattr(_loaded(), f"dhp_controls_{name}")(*arguments)
    if said is not None:
        raise ControlsError(f"dhp_jax.validate: {said.decode()}")


def leak(scores: Any, length: int) -> Any:
    """Sums of 2^scores before a length, [rows]; loads, exponents and time tell the length. float32 [rows, columns]."""
    scores = np.ascontiguousarray(scores, np.float32)
    out = np.zeros(scores.shape[0], np.float32)
    rows, columns = (ctypes.c_int64(size) for size in scores.shape)
    _run("leak", _pointer(scores), rows, columns, ctypes.c_int64(length), _pointer(out))
    return out


def leak_arguments(secret: str) -> tuple[Any, int]:
    """Scores and the length, which is what the secret "length N" says."""
    scores = np.random.default_rng(0).standard_normal((_LEAK_ROWS, _LEAK_COLUMNS)).astype(np.float32)
    return scores, int(secret.removeprefix("length "))


def unordered_sum(values: Any) -> Any:
    """The sum of float32 values by atomics; its last bits differ from run to run."""
    values = np.ascontiguousarray(values, np.float32)
    out = np.zeros(1, np.float32)
    _run("unordered_sum", _pointer(values), ctypes.c_int64(values.size), _pointer(out))
    return out


def num_sms() -> int:
    """Multiprocessors of the GPU."""
    count = ctypes.c_int32()
    _run("count_sms", ctypes.byref(count))
    return count.value


def time_call(
    call: Call,
    work: int,
    classes: list[Arrays],
    order: Any,
    waits: list[int] | None = None,
    repeats: int = 1,
    rest: int = 0,
) -> tuple[Any, Any]:
    """Times one run for each entry of `order`.

    Args:
        call: the call.
        work: FORWARD, BACKWARD or DELAYED.
        classes: the arrays of each class, as Call.arrays gives them.
        order: int32 [samples], the class of each run.
        waits: for DELAYED: cycles to wait for, of each class.
        repeats: calls in a run, one after the other.
        rest: nanoseconds in which the GPU has no work after each run.

    Returns:
        SM cycles [samples, SMs] (0: not read), and nanoseconds [samples], of whole runs.
    """
    offsets, size = _layout(classes[0])
    blocks = [
        _block(arrays, offsets, size, wait) for arrays, wait in zip(classes, waits or [0] * len(classes), strict=True)
    ]
    described = _Call(call.B, call.T, call.S, call.N, call.K, call.channels)
    described.dtype, described.is_causal = _DTYPES.index(call.dtype), int(call.is_causal)
    described.scale, described.repeats, described.rest = float(call.channels) ** -0.5, repeats, rest
    described.offsets = (ctypes.c_int64 * len(_OFFSETS))(*(offsets.get(name, -1) for name in _OFFSETS))
    return _time(described, work, blocks, order)


def time_leak(lengths: list[int], order: Any) -> tuple[Any, Any]:
    """The same of control_leak; class i has lengths[i]."""
    scores, _ = leak_arguments("length 0")
    arrays = {"scores": scores[0]}
    offsets, size = _layout(arrays)
    return _time(_Call(repeats=1), LEAK, [_block(arrays, offsets, size, length) for length in lengths], order)


def _time(described: _Call, work: int, blocks: list[Any], order: Any) -> tuple[Any, Any]:
    order = np.ascontiguousarray(order, np.int32)
    sms = num_sms()
    cycles, nanoseconds = np.zeros((order.size, sms), np.int32), np.zeros(order.size, np.int64)
    together = np.stack(blocks)
    sizes = ctypes.c_int64(together.shape[1]), ctypes.c_int32(together.shape[0])
    counts = ctypes.c_int64(order.size), ctypes.c_int32(sms)
    arguments = (ctypes.byref(described), ctypes.c_int32(work), _pointer(together), *sizes, _pointer(order), *counts)
    _run("time", *arguments, _pointer(cycles), _pointer(nanoseconds))
    return cycles, nanoseconds


def _layout(arrays: Arrays) -> tuple[dict[str, int], int]:
    """Offset of each array in a block, and the size of a block, in bytes."""
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = end
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end + _LAST


def _block(arrays: Arrays, offsets: dict[str, int], size: int, last: int) -> Any:
    block = np.zeros(size, np.uint8)
    for name, array in arrays.items():
        content = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        block[offsets[name] : offsets[name] + content.size] = content
    block[-8:] = np.frombuffer(np.int64(last).tobytes(), np.uint8)
    return block


def _pointer(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
