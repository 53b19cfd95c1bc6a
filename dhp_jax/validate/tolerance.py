"""How close two results must be: the tests and the conformance loop use the same bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

# The largest relative error of storing a value.
ROUNDOFF = {"float32": 2**-24, "bfloat16": 2**-8, "float16": 2**-11}
_HALF_SUBNORMAL = 2**-24  # the distance of the smallest float16 numbers

# What float32 arithmetic adds, relative to the largest value of the result (`scale` of assert_close). Largest seen on
# the CPU over five seeds of all cases, lengths up to 193: out 1.5e-6, lse 2.4e-7, gradients 1.5e-6, that of bias
# 3.3e-6 (where one value of it is summed over all positions). Twice that leaves room for processors without FMA.
_CPU_ERROR = {"out": 3e-6, "lse": 5e-7, "query": 3e-6, "key": 3e-6, "value": 3e-6, "bias": 7e-6}
# A GPU adds up in one chain (error about sqrt(S) units in the last place, not sqrt(S / 16)), and its exponential and
# reciprocal are approximate to 2 units.
_GPU_ERROR = dict.fromkeys(_CPU_ERROR, 2e-5) | {"bias": 5e-5}
# The backward pass reads `out` as it was stored. Its rounding, weighted by d_out, is in delta and thus in every
# gradient but that of value: seen up to 1.2 roundoffs, and 4.2 where one value of bias collects it from all positions.
_STORED_OUT_ROUNDOFFS = {"query": 2, "key": 2, "bias": 6}
# On a GPU operands of 16 bits meet in tensor cores, and probabilities and gradients of scores are rounded to such an
# operand: seen up to 0.38 roundoffs of the largest value in out, 0.47 in the gradient of value.
# With up to 64 channels the kernels for compute capability 9.0 sum what was rounded: up to half a roundoff in lse.
_ROUNDED_P_ROUNDOFFS = {"out": 0.8, "lse": 0.5, "value": 1, "query": 1, "key": 1}


def tolerance(name: str, dtype: str, on_gpu: bool) -> float:
    """Relative to the largest value of the result: what the computation of `name`, out of inputs `dtype`, may add."""
    error = (_GPU_ERROR if on_gpu else _CPU_ERROR)[name]
    if dtype == "float32":
        return error
    roundoffs = _STORED_OUT_ROUNDOFFS.get(name, 0) + (_ROUNDED_P_ROUNDOFFS.get(name, 0) if on_gpu else 0)
    return error + roundoffs * ROUNDOFF[dtype]


def excess(actual: Any, expected: Any) -> float:
    """By how much `actual` is off beyond the rounding of its own dtype, where `expected` is finite; at least 0."""
    dtype = str(actual.dtype)
    finite = np.isfinite(expected)
    rounding = ROUNDOFF[dtype] * np.abs(expected[finite]) + (_HALF_SUBNORMAL / 2 if dtype == "float16" else 0.0)
    off = np.abs(np.asarray(actual, np.float64)[finite] - expected[finite]) - rounding
    return float(off.max(initial=0.0))
