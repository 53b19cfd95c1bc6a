"""Named attention calls, their inputs, how to run them, and how close two results must be.

Axis letters as everywhere: B batch, T query position, S key position, N query heads, K key/value heads, D channels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dhp_jax
from dhp_jax import reference
from dhp_jax.validate import tolerance as bounds

DTYPES = ("float32", "bfloat16", "float16")
FLOATING = ("query", "key", "value", "bias")  # the arguments that have gradients


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention call. `bias` and `mask` name their full axes, out of "bnts"; the others have size 1."""

    name: str
    B: int
    T: int
    S: int
    N: int
    K: int
    D: int
    scale: float | None = None
    is_causal: bool = False
    window: int | tuple[int, int] | None = None
    bias: str | None = None
    bias_dtype: str = "float32"
    mask: str | None = None
    query_lengths: bool = False
    key_value_lengths: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": self.scale, "is_causal": self.is_causal, "local_window_size": self.window}

    def score_shape(self, full_axes: str) -> tuple[int, ...]:
        sizes = zip("bnts", (self.B, self.N, self.T, self.S), strict=True)
        return tuple(size if axis in full_axes else 1 for axis, size in sizes)


# No two sizes of a case are equal, but N and K of plain multi-head attention; none is 1 but the one it is about.
# The CPU kernels work on 128 rows, counted over T and the heads of a group, by 64 keys: sizes lie around multiples. Up
# to 8 rows go another way, which splits the keys by 512.
CASES = (
    Case("plain", B=2, T=133, S=63, N=3, K=3, D=64),
    Case("one_query", B=2, T=1, S=65, N=4, K=4, D=8),
    Case("few_queries", B=3, T=2, S=1100, N=8, K=2, D=20),
    Case("few_queries_causal", B=2, T=5, S=515, N=3, K=3, D=8, is_causal=True),
    Case("few_queries_window", B=3, T=4, S=1030, N=2, K=2, D=72, window=(3, 600)),
    Case("one_key", B=2, T=33, S=1, N=4, K=4, D=8),
    Case("one_channel", B=2, T=33, S=65, N=3, K=3, D=1),
    Case("channels_20", B=2, T=127, S=64, N=5, K=5, D=20),
    Case("channels_100", B=3, T=128, S=65, N=2, K=2, D=100),
    Case("channels_128", B=2, T=31, S=129, N=3, K=3, D=128),
    Case("channels_256", B=2, T=65, S=127, N=3, K=3, D=256),
    Case("two_heads_share_keys", B=3, T=49, S=63, N=4, K=2, D=20),
    Case("three_heads_share_keys", B=2, T=133, S=63, N=6, K=2, D=8),
    Case("one_key_head", B=2, T=191, S=129, N=5, K=1, D=64),
    Case("scale", B=2, T=33, S=65, N=4, K=4, D=20, scale=0.7),
    Case("negative_scale", B=2, T=33, S=65, N=4, K=4, D=20, scale=-0.3),
    Case("scale_zero", B=2, T=33, S=65, N=4, K=4, D=20, scale=0.0),
    Case("causal_more_queries", B=2, T=191, S=129, N=3, K=3, D=64, is_causal=True),
    Case("causal_more_keys", B=2, T=133, S=193, N=4, K=2, D=8, is_causal=True),
    Case("causal_one_key_head", B=3, T=65, S=67, N=4, K=1, D=20, is_causal=True),
    Case("window", B=2, T=191, S=129, N=3, K=3, D=8, window=(70, 3)),
    Case("window_narrow", B=2, T=193, S=191, N=4, K=2, D=8, window=(2, 1)),
    Case("window_one_number", B=2, T=133, S=129, N=3, K=3, D=8, window=33),
    Case("window_ahead_only", B=2, T=133, S=129, N=3, K=3, D=8, window=(-2, 40)),
    Case("window_behind_only", B=2, T=129, S=97, N=3, K=3, D=8, window=(40, -2)),
    Case("window_sees_nothing", B=2, T=33, S=65, N=3, K=3, D=8, window=(3, -5)),
    Case("window_sees_nothing_of_few_queries", B=2, T=2, S=129, N=3, K=3, D=8, window=(1, -40)),
    Case("window_sees_nothing_of_few_keys", B=2, T=129, S=3, N=3, K=3, D=8, window=(-40, 1)),
    Case("window_without_limit", B=2, T=33, S=65, N=3, K=3, D=8, window=(2**30, 2**30)),
    Case("causal_window", B=2, T=129, S=131, N=6, K=2, D=8, is_causal=True, window=(66, 5)),
    Case("bias_full", B=2, T=133, S=65, N=3, K=3, D=8, bias="bnts"),
    Case("bias_heads", B=2, T=133, S=65, N=3, K=3, D=8, bias="nts"),
    Case("bias_batch", B=3, T=133, S=65, N=4, K=2, D=20, bias="bts"),
    Case("bias_keys", B=3, T=133, S=65, N=4, K=2, D=8, bias="bs"),
    Case("bias_queries", B=2, T=133, S=65, N=4, K=2, D=8, bias="nt"),
    Case("bias_head_only", B=2, T=133, S=65, N=3, K=3, D=8, bias="n"),
    Case("bias_one_value", B=2, T=97, S=65, N=3, K=3, D=8, bias=""),
    Case("bias_few_queries", B=2, T=2, S=600, N=6, K=3, D=8, bias="bnts", bias_dtype="bfloat16"),
    Case("bias_float16", B=2, T=33, S=65, N=3, K=3, D=8, bias="nts", bias_dtype="float16"),
    Case("bias_bfloat16", B=2, T=33, S=65, N=3, K=3, D=8, bias="nts", bias_dtype="bfloat16"),
    Case("bias_causal_window", B=2, T=193, S=129, N=4, K=2, D=8, bias="ts", is_causal=True, window=(70, 0)),
    Case("mask_full", B=2, T=133, S=65, N=3, K=3, D=8, mask="bnts"),
    Case("mask_pairs", B=2, T=133, S=65, N=4, K=2, D=8, mask="ts"),
    Case("mask_keys", B=3, T=133, S=65, N=4, K=2, D=8, mask="bs"),
    Case("mask_queries", B=3, T=133, S=65, N=4, K=2, D=8, mask="bnt"),
    Case("mask_few_queries", B=2, T=3, S=600, N=4, K=2, D=8, mask="nts"),
    Case("lengths_few_queries", B=5, T=2, S=1100, N=4, K=2, D=8, query_lengths=True, key_value_lengths=True),
    Case("lengths_of_queries", B=3, T=133, S=65, N=4, K=2, D=8, query_lengths=True),
    Case("lengths_of_keys", B=3, T=133, S=65, N=4, K=2, D=8, key_value_lengths=True),
    Case(
        "lengths_causal", B=3, T=133, S=129, N=2, K=2, D=8, query_lengths=True, key_value_lengths=True, is_causal=True
    ),
    Case(
        "everything",
        **{"B": 3, "T": 133, "S": 129, "N": 6, "K": 2, "D": 20},
        **{"scale": 0.4, "is_causal": True, "window": (90, 5), "bias": "nts", "bias_dtype": "bfloat16"},
        **{"mask": "bs", "query_lengths": True, "key_value_lengths": True},
    ),
)


def named(cases=CASES, dtypes=DTYPES):
    """Parameters for ``parameterized.named_parameters``: every case in every dtype."""
    return [(f"{case.name}_{dtype}", case, dtype) for case in cases for dtype in dtypes]


def make_inputs(case: Case, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a call, by the names of its arguments. Lengths also lie below 0 and past the end."""
    rng = np.random.default_rng(seed)

    def normal(shape, array_dtype=dtype):
        return rng.standard_normal(shape).astype(jnp.dtype(array_dtype))

    inputs = {
        "query": normal((case.B, case.T, case.N, case.D)),
        "key": normal((case.B, case.S, case.K, case.D)),
        "value": normal((case.B, case.S, case.K, case.D)),
    }
    if case.bias is not None:
        inputs["bias"] = normal(case.score_shape(case.bias), case.bias_dtype)
    if case.mask is not None:
        inputs["mask"] = rng.random(case.score_shape(case.mask)) < 0.7
    if case.query_lengths:
        inputs["query_seq_lengths"] = rng.integers(-2, case.T + 3, case.B, dtype=np.int32)
    if case.key_value_lengths:
        inputs["key_value_seq_lengths"] = rng.integers(-2, case.S + 3, case.B, dtype=np.int32)
    return inputs


def make_cotangents(case: Case, dtype: str, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """d_out [B, T, N, D] and d_lse [B, T, N]."""
    rng = np.random.default_rng(seed)
    d_out = rng.standard_normal((case.B, case.T, case.N, case.D)).astype(jnp.dtype(dtype))
    return d_out, rng.standard_normal((case.B, case.T, case.N)).astype(np.float32)


def run_forward(attention, inputs, **options) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) of `attention`, compiled."""
    function = functools.partial(attention, **options, return_residual=True)
    return jax.tree.map(np.asarray, jax.jit(lambda arrays: function(**arrays))(inputs))


def run_backward(attention, inputs, d_out, **options) -> dict[str, np.ndarray]:
    """The gradients of `attention` by the names of its arguments, compiled."""
    constant = {name: array for name, array in inputs.items() if name not in FLOATING}
    floating = {name: array for name, array in inputs.items() if name in FLOATING}

    @jax.jit
    def gradients(floating, constant, d_out):
        _, pull_back = jax.vjp(lambda arrays: attention(**arrays, **constant, **options), floating)
        return pull_back(d_out)[0]

    return jax.tree.map(np.asarray, gradients(floating, constant, d_out))


def reference_backward(inputs, d_out, d_lse=None, **options) -> dict[str, np.ndarray]:
    """The same from the float64 reference."""
    d_lse = np.zeros(d_out.shape[:3]) if d_lse is None else d_lse
    gradients = reference.backward(reference.Problem(**inputs, **options), d_out, d_lse)
    return {name: array for name, array in gradients._asdict().items() if array is not None}


def tolerance(name: str, dtype: str) -> float:
    """Relative to the largest value of the result: what the computation of `name`, out of inputs `dtype`, may add."""
    on_gpu = jax.default_backend() == "gpu" or dhp_jax.build_info()["host_isa"] == "emulated"
    return bounds.tolerance(name, dtype, on_gpu)


def assert_close(actual, expected, tolerance: float, scale: float | None = None, name: str = "result") -> None:
    """Fails unless `actual` is `expected` to within tolerance * scale plus the rounding of its own dtype.

    NaN and infinities must be at the same places. `scale` is the largest finite value of `expected` unless given.
    """
    values = np.asarray(actual, np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(values[~finite], expected[~finite], name)
    if scale is None:
        scale = np.abs(expected[finite]).max(initial=0.0)
    largest = bounds.excess(actual, expected)
    assert largest <= tolerance * scale, f"{name} is off by {largest:.3g}; {tolerance:.3g} * {scale:.3g} is allowed"


def assert_gradients_close(actual, expected, dtype: str) -> None:
    """assert_close for every gradient, relative to the largest of all of them.

    One alone may be 0 but for rounding, such as that of the query where there is one key.
    """
    assert actual.keys() == expected.keys()
    scale = max(np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in expected.values())
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], tolerance(name, dtype), scale, name)


def oracle(**arguments):
    """jax.nn's attention at full float32 precision, which is not its default on every platform."""
    with jax.default_matmul_precision("highest"):
        return jax.nn.dot_product_attention(**arguments)
