"""What a drawn call does, and whether that is what the contract says.

A call of strategies.py is run through a function with the arguments of dot_product_attention. Where the contract allows
the call, its results must have the promised shapes and dtypes, and the values of the reference; where it does not, an
error of ours must refuse it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import re
import traceback
from collections.abc import Callable
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import strategies
from strategies import Array, Call, Foreign

from dhp_jax import attention, reference

PACKAGE = pathlib.Path(attention.__file__).parent

# What came; the rule. The way out.
_FORM = re.compile(
    r"dot_product_attention: [^\n]+("
    r"; [^\n]*(must|has one implementation|are those of|it takes)[^\n]*\. [A-Z][^\n]*"
    r"|(cannot|does not) [^\n]+; (make|give) [^\n]*)\."
)
_LONGEST_MESSAGE = 600

# Where jax.nn takes a call that we refuse: what our message says, for each difference that the docstring lists.
_REFUSED_HERE_ONLY = (
    r"(query|key|value) has shape .* must be \(B, length, heads, D\)",
    r"(query|key|value) has dtype (u?int|bool|complex|float64)",
    r"the head dimension is (0|257|300)\b",
    r"a sequence has length 21474\d+;",
    r"bias has dtype (u?int|bool|complex)",
    r"(bias|mask) has shape .* does not broadcast to \(B, N, T, S\) = \(.*, 1\)",
    r"scale is .*(inf|nan|Tracer|array|'1'|b'1'|np.complex|\[\]|\[1\]|1e\+39|1e\+300)",
    r"local_window_size is .*(array|Tracer|1\.5)",
    r"(is_causal|return_residual) is ",
    r"implementation=",
)


class UnexpectedOutcome(AssertionError):  # noqa: N818
    """A call did something else than the contract says."""


def evaluate(call: Call, attend: Callable[..., Any]) -> Any:
    """Shapes and dtypes of the results of a call, of which nothing is executed."""
    function, _ = _prepared(call, attend, np.random.default_rng(0))
    arrays = {
        name: jax.ShapeDtypeStruct(call.mapped_shape(name), jnp.dtype(array.dtype_in_jax(call.x64)))
        for name, array in call.traced().items()
    }
    return jax.eval_shape(_transformed(call, function), arrays, _traced_options(call))


def execute(call: Call, attend: Callable[..., Any], seed: int) -> Exception | None:
    """Runs a call on values drawn from `seed`, checks what it does, and returns the error that refused it."""
    rng = np.random.default_rng(seed)
    function, constants = _prepared(call, attend, rng)
    operands = jax.device_put(
        {
            name: dataclasses.replace(array, shape=call.mapped_shape(name)).on_host(rng)
            for name, array in call.traced().items()
        }
    )
    options = _traced_options(call)
    run = jax.jit(_transformed(call, function)) if options else _transformed(call, function)
    results, error = check(call, lambda: jax.block_until_ready(run(operands, options)))
    if error is None and is_comparable(call):
        _assert_close_to_reference(call, constants, jax.tree.map(np.asarray, operands), results)
    return error


def check(call: Call, run: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Runs a call; returns its results, or its error where it is refused as it must be."""
    try:
        results = run()
    except Exception as error:
        assert_ours(error)
        if strategies.is_legal(call):
            raise UnexpectedOutcome(f"a good call is refused: {error}") from error
        return None, error
    if not strategies.is_legal(call):
        raise UnexpectedOutcome("a bad call is taken")
    _assert_promised(call, results)
    return results, None


def assert_difference_is_known(call: Call, error: Exception) -> None:
    """Where jax.nn takes the call that got this error of ours, the docstring says so.

    jax.nn checks shapes as it computes, so it takes any that end in a result without elements.
    """
    if 0 in getattr(call.arguments["query"], "shape", ()):
        return
    if _is_taken_by_jax(call) and not any(re.search(known, str(error)) for known in _REFUSED_HERE_ONLY):
        raise UnexpectedOutcome(f"jax.nn takes this call: {error}")


def _is_taken_by_jax(call: Call) -> bool:
    # jax.nn warns of a division by D = 0 and of a scale past float32.
    with contextlib.suppress(Exception), np.errstate(all="ignore"):
        evaluate(call, jax.nn.dot_product_attention)
        return True
    return False


def _prepared(call: Call, attend: Callable[..., Any], rng: np.random.Generator) -> tuple[Callable[..., Any], Any]:
    """(function of the traced operands and options, the arguments that it closes over)."""
    traced = call.traced()
    constants = {name: _closed_over(x, rng) for name, x in call.arguments.items() if name not in traced}
    options = {name: option.value for name, option in call.options.items() if not option.traced}

    def function(arrays: dict[str, Any], traced_options: dict[str, Any]) -> Any:
        return attend(**arrays, **constants, **options, **traced_options)

    return function, constants


def _closed_over(argument: Array | Foreign, rng: np.random.Generator) -> Any:
    """The argument as the caller holds it."""
    if isinstance(argument, Foreign):
        return argument.value
    values = np.asarray(argument.on_host(rng))
    return {"numpy": lambda: values, "jax": lambda: jax.device_put(values), "list": values.tolist}[argument.container]()


def _traced_options(call: Call) -> dict[str, Any]:
    return {name: option.value for name, option in call.options.items() if option.traced}


def _transformed(call: Call, function: Callable[..., Any]) -> Callable[..., Any]:
    if call.transform == "grad":
        function = functools.partial(_gradients, function, strategies.differentiated(call))
    else:
        function = {"plain": lambda f: f, "jit": jax.jit, "checkpoint": jax.checkpoint}[call.transform](function)
    in_axes = {name: call.in_axes.get(name) for name in call.traced()}
    return jax.vmap(function, in_axes=(in_axes, None)) if call.in_axes else function


def _gradients(function: Callable[..., Any], names: tuple[str, ...], arrays: Any, traced_options: Any) -> Any:
    """Of the sum of the output."""

    def total(chosen: dict[str, jax.Array]) -> jax.Array:
        out, *_ = jax.tree.leaves(function(arrays | chosen, traced_options))
        return out.astype(jnp.float32).sum()

    return jax.grad(total)({name: arrays[name] for name in names})


def assert_ours(error: Exception) -> None:
    """The error was raised by dhp_jax, on purpose, and says what came, the rule and the way out."""
    text = str(error)
    if type(error) not in (TypeError, ValueError):
        raise UnexpectedOutcome(f"{type(error).__name__} is not a type of ours: {text}") from error
    raiser = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if PACKAGE not in raiser.parents:
        raise UnexpectedOutcome(f"{raiser} raised it: {text}") from error
    if not _FORM.fullmatch(text) or len(text) > _LONGEST_MESSAGE:
        raise UnexpectedOutcome(f"not the form of a message: {text}") from error


def _assert_promised(call: Call, results: Any) -> None:
    wanted = _promised(call)
    if jax.tree.structure(results) != jax.tree.structure(wanted):
        raise UnexpectedOutcome(f"{jax.tree.structure(results)} is not {jax.tree.structure(wanted)}")
    for actual, promise in zip(jax.tree.leaves(results), jax.tree.leaves(wanted), strict=True):
        if (actual.shape, actual.dtype) != (promise.shape, promise.dtype):
            raise UnexpectedOutcome(f"{actual.dtype}{actual.shape} is not {promise.dtype}{promise.shape}")


def _promised(call: Call) -> Any:
    """Shapes and dtypes of the results of a legal call, in a pytree like them."""

    def struct(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((call.mapped_size, *shape) if call.in_axes else shape, dtype)

    if call.transform == "grad":
        chosen = {name: call.arguments[name] for name in strategies.differentiated(call)}
        return {name: struct(array.shape, array.dtype_in_jax(call.x64)) for name, array in chosen.items()}
    query = call.arguments["query"]
    out = struct(query.shape, query.dtype_in_jax(call.x64))
    return (out, struct(query.shape[:-1], "float32")) if call.option("return_residual") else out


def is_comparable(call: Call) -> bool:
    """Whether rounding, and what lies outside of a band, cannot explain a difference from the reference."""
    arrays = [array for array in call.arguments.values() if isinstance(array, Array)]
    values = {array.values for array in arrays if array.dtype != "bool"}
    has_band = call.option("is_causal") or call.option("local_window_size") is not None
    spreads = bool(values & {"nan", "inf"}) and (has_band or call.transform == "grad")
    return "huge" not in values and _error_factor(call) < 40 and not spreads


def _error_factor(call: Call) -> float:
    """About how much larger than 1 the scores are, and with them the errors of their exponentials."""
    scale = call.option("scale")
    return 1.0 if scale is None else 1.0 + abs(float(scale)) * call.arguments["query"].shape[-1] ** 0.5


def _assert_close_to_reference(call: Call, constants: Any, operands: dict[str, np.ndarray], results: Any) -> None:
    for v in range(call.mapped_size) if call.in_axes else [None]:
        cut = {
            name: np.take(array, v, axis=call.in_axes[name]) if name in call.in_axes else array
            for name, array in operands.items()
        }
        result = jax.tree.map(lambda x, v=v: np.asarray(x if v is None else x[v]), results)
        assert_close = _assert_gradients_close if call.transform == "grad" else _assert_out_close
        assert_close(call, _reference_arrays(call, constants | cut), result)


def _reference_arrays(call: Call, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arguments as JAX takes them, with four axes each; float32's subnormals are the zeros that they count as."""
    result = {}
    for name, array in arrays.items():
        spec = call.arguments[name]
        if isinstance(spec, Foreign):  # None
            continue
        array = np.asarray(array)
        if name in strategies.FLOATING:
            array = array.astype(jnp.dtype(spec.dtype_in_jax(call.x64))).astype(np.float32)
            array = np.where(np.abs(array) < np.finfo(np.float32).tiny, 0.0, array)
        result[name] = array if name in strategies.LENGTHS else array.reshape(spec.shape_of_rank_4)
    return result


def _reference_options(call: Call) -> dict[str, Any]:
    scale, window = call.option("scale"), call.option("local_window_size")
    if window is not None:
        window = window if isinstance(window, tuple | list) else (window, window)
        window = tuple(min(max(int(side), -(2**40)), 2**40) for side in window)  # NumPy adds in 64 bits
    return {
        "scale": None if scale is None else float(scale),
        "is_causal": bool(call.option("is_causal")),
        "local_window_size": window,
    }


def _assert_out_close(call: Call, arrays: dict[str, np.ndarray], result: Any) -> None:
    dtype = call.arguments["query"].dtype_in_jax(call.x64)
    expected = reference.forward(reference.Problem(**arrays, **_reference_options(call)))
    for name, actual, wanted in zip(("out", "lse"), jax.tree.leaves(result), expected, strict=False):
        tolerance = _error_factor(call) * cases.tolerance(name, dtype)
        cases.assert_close(actual.reshape(wanted.shape), wanted, tolerance, name=name)


def _assert_gradients_close(call: Call, arrays: dict[str, np.ndarray], result: dict[str, np.ndarray]) -> None:
    dtype = call.arguments["query"].dtype_in_jax(call.x64)
    expected = cases.reference_backward(arrays, np.ones(arrays["query"].shape), **_reference_options(call))
    scale = max(np.abs(gradient).max(initial=0.0) for gradient in expected.values())
    for name, actual in result.items():
        actual = actual.astype(np.float32) if actual.dtype == np.float64 else actual
        tolerance = _error_factor(call) * cases.tolerance(name, dtype)
        cases.assert_close(actual.reshape(expected[name].shape), expected[name], tolerance, scale, name)
