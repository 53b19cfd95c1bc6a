"""Inputs for attention calls, and questions about the programs that JAX makes of them.

Axis letters: V and W mapped, B batch, T query position, S key position, N query heads, K key/value heads, D channels.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dhp_jax

FLOATS = ("query", "key", "value", "bias")
LENGTHS = ("query_seq_lengths", "key_value_seq_lengths")

_COLLECTIVE = re.compile(
    r"= .*? (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(?:-start)?\("
)
_BROADCAST = re.compile(r"broadcast_in_dim .*\(tensor<(.*?)>\) -> tensor<(.*?)>")
_CALL = re.compile(r'@(dhp_\w+)\(|custom_call_target="(dhp_\w+)"')
_ANY_CALL = re.compile(r'custom_call @"?([\w$.]+)"?\(|custom_call_target="([^"]+)"')


def arrays(
    *,
    lead: tuple[int, ...] = (),
    b: int = 3,
    t: int = 5,
    s: int = 7,
    n: int = 4,
    k: int = 2,
    d: int = 8,
    dtype: Any = "float32",
    seed: int = 0,
) -> dict[str, jax.Array]:
    """Every argument of a call, with the axes `lead` before those of the call. No two sizes are equal.

    No row is fully masked. bias and mask each have one axis of size 1 under a larger one.
    """
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=(*lead, *shape)), dtype)

    def lengths(longest: int) -> jax.Array:
        return jnp.asarray(generator.integers(1, longest + 1, size=(*lead, b)), "int32")

    result = {
        "query": normal(b, t, n, d),
        "key": normal(b, s, k, d),
        "value": normal(b, s, k, d),
        "bias": normal(1, n, t, s),
        "mask": jnp.asarray(generator.random(size=(*lead, b, 1, t, s)) < 0.7).at[..., 0].set(True),
    }
    return result | {"query_seq_lengths": lengths(t), "key_value_seq_lengths": lengths(s)}


def some(arrays: dict[str, Any], *names: str) -> dict[str, Any]:
    """query, key and value, and of the optional arguments those in `names`."""
    return {name: array for name, array in arrays.items() if name in ("query", "key", "value", *names)}


def attend(arrays: dict[str, jax.Array], **options: Any) -> Any:
    """dhp_jax.dot_product_attention with its arrays in a dict, that is, in one pytree."""
    return dhp_jax.dot_product_attention(**arrays, **options)


def with_cotangent(arrays: dict[str, jax.Array], seed: int = 1) -> dict[str, jax.Array]:
    """The arguments of attend_and_differentiate: those of attend, and a cotangent of its output."""
    query = arrays["query"]
    values = np.random.default_rng(seed).normal(size=query.shape)
    return arrays | {"cotangent": jnp.asarray(values, query.dtype)}


def attend_and_differentiate(arguments: dict[str, jax.Array], **options: Any) -> dict[str, jax.Array]:
    """Output, log-sum-exp, and the gradient of every argument that has one."""
    arrays = {name: array for name, array in arguments.items() if name != "cotangent"}
    floats = {name: arrays[name] for name in FLOATS if name in arrays}

    def of_floats(floats: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return attend(arrays | floats, return_residual=True, **options)

    out, pull_back, lse = jax.vjp(of_floats, floats, has_aux=True)
    (gradients,) = pull_back(arguments["cotangent"])
    return {"out": out, "lse": lse} | {f"d_{name}": gradient for name, gradient in gradients.items()}


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Fails unless two pytrees of arrays are equal in every bit."""
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        raise AssertionError(f"{jax.tree.structure(actual)} is not {jax.tree.structure(expected)}")
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        x, y, name = np.asarray(x), np.asarray(y), jax.tree_util.keystr(path)
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise AssertionError(f"{name}: {x.dtype}{x.shape} is not {y.dtype}{y.shape}")
        if x.tobytes() != y.tobytes():
            np.testing.assert_allclose(x.astype("float64"), y.astype("float64"), rtol=0, atol=0, err_msg=name)
            raise AssertionError(f"{name}: equal values of different bits (signed zeros or NaNs)")


def assert_close(actual: Any, expected: Any, rtol: float = 2e-6, atol: float = 2e-6) -> None:
    """Fails unless two pytrees of arrays agree up to float32 rounding of sums taken in another order."""
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        raise AssertionError(f"{jax.tree.structure(actual)} is not {jax.tree.structure(expected)}")
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, strict=True, err_msg=jax.tree_util.keystr(path))


def native_calls(text: str) -> list[str]:
    """The native calls in StableHLO or HLO, in order and without their common prefix."""
    return ["".join(names).removeprefix("dhp_attention_") for names in _CALL.findall(text)]


def custom_calls(text: str) -> set[str]:
    """The targets of all custom calls in StableHLO or HLO, ours or not."""
    return {"".join(names) for names in _ANY_CALL.findall(text)}


def copied_shapes(text: str) -> list[tuple[int, ...]]:
    """The shapes to which StableHLO expands smaller arrays, constants and scalars aside."""

    def shape(sizes: str) -> tuple[int, ...]:
        return tuple(int(size) for size in sizes.split("x") if size.isdigit())

    pairs = [(shape(operand), shape(result)) for operand, result in _BROADCAST.findall(text)]
    return [result for operand, result in pairs if 1 < math.prod(operand) < math.prod(result)]


def collectives(compiled: Any) -> set[str]:
    """The kinds of communication between devices in a compiled program."""
    return set(_COLLECTIVE.findall(compiled.as_text()))


V, W = 6, 9  # sizes of mapped axes; with B, T, S, N, K, D = 3, 5, 7, 4, 2, 8 no two are equal
GROUPS = ("query", "key", "value", "bias", "mask", "lengths", "cotangent")

run_single = jax.jit(attend_and_differentiate)


def subsets(names):
    return [chosen for size in range(len(names) + 1) for chosen in itertools.combinations(names, size)]


def expand_lengths(groups):
    """The names of the arguments in some GROUPS; the two lengths go together, to halve the number of subsets."""
    return {name for group in groups for name in (LENGTHS if group == "lengths" else (group,))}


def arguments_for(maps):
    """Arguments whose leading axes are those of the `maps`, (size, mapped groups) outermost first, that map them."""
    full = with_cotangent(arrays(lead=tuple(size for size, _ in maps)))

    def cut(name, array):
        index = tuple(slice(None) if name in expand_lengths(groups) else 0 for _, groups in maps)
        return array[index]

    return {name: cut(name, array) for name, array in full.items()}


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
