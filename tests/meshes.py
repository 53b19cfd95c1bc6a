"""Meshes of virtual devices, arguments laid out on them, and what the sharding tests say of them."""

import itertools

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from programs import (
    FLOATS,
    LENGTHS,
    arrays,
    attend,
    attend_and_differentiate,
    some,
    with_cotangent,
)

SIZES = {"b": 6, "t": 10, "s": 14, "n": 8, "d": 16}  # b divisible by x; n by y and by x * y; t and s by x, d by y
MODES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
LAYOUTS = {"batch": ("x", None), "heads": (None, "y"), "batch_and_heads": ("x", "y")}
GATHERED = {
    "query_positions": {"query": P(None, "x")},
    "key_positions": {"key": P(None, "x"), "value": P(None, "x")},
    "positions_beside_heads": {"query": P(None, "x", "y"), "key": P(None, "x", "y"), "value": P(None, "x", "y")},
    "value_positions": {"value": P(None, "x")},
    "channels": {"query": P(None, None, None, "y"), "key": P(None, None, None, "y")},
    "bias_queries": {"bias": P(None, None, "x")},
    "bias_keys": {"bias": P(None, "y", None, "x")},
    "mask_keys": {"query": P(None, None, "y"), "mask": P(None, None, None, "x")},
}
CHECKS = {"checked": True, "unchecked": False}
OPTIONAL = ("bias", "mask", *LENGTHS)

MANUAL = {"x": ("x", None), "y": (None, "y")}  # mesh axes of batch and heads that are manual

run_single = jax.jit(attend_and_differentiate)


def cases(*choices):
    """Named parameters for every combination of one item of each dict."""
    for combination in itertools.product(*(choice.items() for choice in choices)):
        yield "_".join(name for name, _ in combination), *(value for _, value in combination)


def named(items):
    return {str(item): item for item in items}


def make_mesh(mode, shape=(2, 4), names=("x", "y")):
    return jax.make_mesh(shape, names, axis_types=(mode,) * len(shape))


def make_arguments(*names, k=4, lead=(), dtype="float32", **sizes):
    """All arguments, of the optional ones those in `names`, and a cotangent."""
    return with_cotangent(some(arrays(**SIZES | sizes, k=k, lead=lead, dtype=dtype), *names))


def specs_of(batch, heads, *, k=4):
    """The sharding of every argument whose batch and heads lie on these mesh axes, as far as the axis has them."""
    key_heads = heads if k % 4 == 0 else None
    of_query, of_key = P(batch, None, heads, None), P(batch, None, key_heads, None)
    return {
        "query": of_query,
        "key": of_key,
        "value": of_key,
        "bias": P(None, heads, None, None),
        "mask": P(batch, None, None, None),
        "query_seq_lengths": P(batch),
        "key_value_seq_lengths": P(batch),
        "cotangent": of_query,
    }


def result_specs(arguments, specs):
    """The shardings of what attend_and_differentiate returns."""
    gradients = {f"d_{name}": specs.get(name, P()) for name in FLOATS if name in arguments}
    return {"out": specs["query"], "lse": P(*specs["query"][:3])} | gradients


def place(mesh, arguments, specs):
    """The arguments sharded as in `specs`; those that it lacks are replicated."""
    return {
        name: jax.device_put(array, NamedSharding(mesh, specs.get(name, P(*(None,) * array.ndim))))
        for name, array in arguments.items()
    }


def compile_and_run(function, mesh, arguments, specs):
    placed = place(mesh, arguments, specs)
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(placed).compile()
        return compiled, compiled(placed)


def forward(arguments):
    return attend({name: x for name, x in arguments.items() if name != "cotangent"}, return_residual=True)


def run_forward(arguments):
    return jax.jit(forward)(arguments)


def assert_sharded(array, mesh, spec):
    expected = NamedSharding(mesh, spec)
    assert array.sharding.is_equivalent_to(expected, array.ndim), f"{array.sharding} is not {expected}"
