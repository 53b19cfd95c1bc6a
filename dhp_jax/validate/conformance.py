"""Loop 3: every feature, forward and backward, against float64 and against `jax.nn.dot_product_attention`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dhp_jax
from dhp_jax import reference
from dhp_jax.validate import gpu
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Context
from dhp_jax.validate.tolerance import excess, tolerance

Arrays = dict[str, Any]

_DTYPES = ("float32", "bfloat16", "float16")
_FLOATING = ("query", "key", "value", "bias")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One call. Sizes by axis letter; `operands` are the optional arrays that it has, `options` its static ones."""

    name: str
    B: int = 2
    T: int = 133
    S: int = 95
    N: int = 4
    K: int = 2
    D: int = 40
    operands: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def arrays(self, dtype: str) -> Arrays:
        """Normal data; key 0 takes part for every query, so that no row is empty."""
        rng = np.random.default_rng(0)
        arrays: Arrays = {"query": rng.standard_normal((self.B, self.T, self.N, self.D))}
        arrays |= {name: rng.standard_normal((self.B, self.S, self.K, self.D)) for name in ("key", "value")}
        arrays = {name: array.astype(jnp.dtype(dtype)) for name, array in arrays.items()}
        optional = {
            "bias": rng.standard_normal((1, self.N, self.T, self.S)).astype(np.float32),
            "mask": rng.random((self.B, 1, self.T, self.S)) < 0.7,
            "query_seq_lengths": rng.integers(1, self.T + 1, self.B, dtype=np.int32),
            "key_value_seq_lengths": rng.integers(1, self.S + 1, self.B, dtype=np.int32),
        }
        optional["mask"][..., 0] = True
        return arrays | {name: optional[name] for name in self.operands}


_LENGTHS = ("query_seq_lengths", "key_value_seq_lengths")
_CAUSAL = ("is_causal", True)

FEATURES = (
    Feature("plain, D=64", N=3, K=3, D=64),
    Feature("D=128", N=2, K=2, D=128),
    Feature("D=256", T=65, N=3, K=3, D=256),
    Feature("D=20", N=3, K=3, D=20),
    Feature("one query", T=1, S=513),
    Feature("one key head", N=5, K=1),
    Feature("causal", options=(_CAUSAL,)),
    Feature("window", options=(("local_window_size", (40, 3)),)),
    Feature("causal window", options=(_CAUSAL, ("local_window_size", (90, 0)))),
    Feature("scale", options=(("scale", -0.3),)),
    Feature("bias", operands=("bias",)),
    Feature("mask", operands=("mask",)),
    Feature("lengths of keys", operands=("key_value_seq_lengths",)),
    Feature("lengths", operands=_LENGTHS),
    Feature("everything", operands=("bias", "mask", *_LENGTHS), options=(_CAUSAL, ("scale", 0.4))),
)
_QUICK = ("plain, D=64", "causal", "everything")


def on_cpu(context: Context) -> list[Check]:
    """The CPU kernels."""
    with jax.default_device(gpu.cpu()):
        return [run("conformance cpu", _chosen(context), on_gpu=False)]


def on_gpu(context: Context) -> list[Check]:
    """The CUDA kernels."""
    return [run("conformance cuda", _chosen(context), on_gpu=True)]


def _chosen(context: Context) -> list[Feature]:
    return [feature for feature in FEATURES if not context.quick or feature.name in _QUICK]


def run(name: str, features: Iterable[Feature], *, on_gpu: bool) -> Check:
    """One check over all features and dtypes. A share of 1 is all that is allowed."""
    shares = {
        f"{feature.name} {dtype} {result}": share
        for feature in features
        for dtype in _DTYPES
        for result, share in compare(feature, dtype, on_gpu).items()
    }
    failed = {key: share for key, share in shares.items() if not share <= 1}
    worst = max(shares, key=lambda key: shares[key], default="")
    figures = {"shares of what is allowed": shares}
    if not shares:
        return Check(name, Status.UNKNOWN, "no call was made")
    if failed:
        return Check(name, Status.FAIL, f"off by more than is allowed: {failed}", figures)
    told = f"{len(shares)} results against float64 and jax.nn; the worst has {shares[worst]:.2f} of its bound ({worst})"
    return Check(name, Status.PASS, told, figures)


def compare(feature: Feature, dtype: str, on_gpu: bool) -> dict[str, float]:
    """By result: how far it is off, as a share of what is allowed; infinite where it is NaN and should not be."""
    arrays, options = feature.arrays(dtype), dict(feature.options)
    d_out = np.random.default_rng(1).standard_normal(arrays["query"].shape).astype(jnp.dtype(dtype))
    actual = _ours(arrays, d_out, options)
    problem = reference.Problem(**arrays, **options)
    out, lse = reference.forward(problem)
    gradients = reference.backward(problem, d_out, np.zeros(lse.shape))._asdict()
    expected = {"out": out, "lse": lse}
    expected |= {key: array for key, array in gradients.items() if array is not None}
    scale = {key: _largest(array) for key, array in expected.items()}
    scale |= dict.fromkeys(_FLOATING, max(scale[key] for key in _FLOATING if key in scale))
    shares = {
        key: _share(actual[key], array, tolerance(key, dtype, on_gpu) * scale[key]) for key, array in expected.items()
    }
    if "query_seq_lengths" not in feature.operands:  # past them jax.nn differs on purpose
        theirs = _jax_nn(arrays, options)
        allowed = tolerance("out", dtype, on_gpu) + tolerance("out", "float32", on_gpu)
        shares["out beside jax.nn"] = _share(actual["out"], theirs, allowed * scale["out"])
    return shares


def _ours(arrays: Arrays, d_out: Any, options: dict[str, Any]) -> Arrays:
    fixed = {name: array for name, array in arrays.items() if name not in _FLOATING}

    @jax.jit
    def attend_and_differentiate(floating: Arrays, fixed: Arrays, d_out: jax.Array) -> Arrays:
        def attend(floating: Arrays) -> Any:
            return dhp_jax.dot_product_attention(**floating, **fixed, **options, return_residual=True)

        out, pull_back, lse = jax.vjp(attend, floating, has_aux=True)
        return {"out": out, "lse": lse} | pull_back(d_out)[0]

    floating = {name: array for name, array in arrays.items() if name in _FLOATING}
    return {name: np.asarray(array) for name, array in attend_and_differentiate(floating, fixed, d_out).items()}


def _jax_nn(arrays: Arrays, options: dict[str, Any]) -> Any:
    """The output of jax.nn on the same values in float32, at full precision."""
    wide = {name: a.astype(np.float32) if name in _FLOATING else a for name, a in arrays.items()}
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda arrays: jax.nn.dot_product_attention(**arrays, **options))(wide), np.float64)


def _largest(array: Any) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _share(actual: Any, expected: Any, allowed: float) -> float:
    finite = np.isfinite(expected)
    if not np.array_equal(np.asarray(actual, np.float64)[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    off = excess(actual, expected)
    return off / allowed if allowed > 0 else (0.0 if off == 0 else float("inf"))
