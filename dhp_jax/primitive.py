"""The primitives of attention: their axes, abstract evaluation, lowering and batching.

A call goes down through four layers, each of which has one concern:

  custom_jvp            refuses a second derivative (the first is attention.py's custom_vjp)
  custom_vmap           folds a mapped axis into V, the leading axis of every operand
  custom_partitioning   keeps V, batch and heads sharded (partition.py)
  Primitive             lowers to one FFI custom call

V has the full size or, on an operand that is not mapped, 1: the native code then repeats it with a stride of 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import mlir, xla
from jax.sharding import AbstractMesh, PartitionSpec

from dhp_jax import ffi, partition
from dhp_jax.spec import Options

CHECKPOINT_NAMES = ("dhp_attention_out", "dhp_attention_row_max", "dhp_attention_log_sum")
"""Names of the forward residuals, for ``jax.checkpoint_policies.save_only_these_names(*CHECKPOINT_NAMES)``."""

NO_DERIVATIVE = (
    "dhp_jax.dot_product_attention has one reverse-mode derivative (jax.grad, jax.vjp); this program takes forward "
    "mode (jax.jvp, jax.jacfwd) or a second derivative (jax.hessian, jax.grad of jax.grad). Use "
    "jax.nn.dot_product_attention there: it has them, and is not constant-time."
)

# Axes of every operand and result. v mapped, b batch, t query and s key position, n query and k key/value heads,
# d channels. bias and mask may have 1 on any axis.
AXES = {
    "query": "vbtnd",
    "key": "vbskd",
    "value": "vbskd",
    "bias": "vbnts",
    "mask": "vbnts",
    "query_lengths": "vb",
    "key_value_lengths": "vb",
    "out": "vbtnd",
    "row_max": "vbtn",
    "log_sum": "vbtn",
    "d_out": "vbtnd",
    "d_lse": "vbtn",
    "d_query": "vbtnd",
    "d_key": "vbskd",
    "d_value": "vbskd",
    "d_bias": "vbnts",
    "delta": "vbtn",
}
_CACHE_SIZE = 1024  # calls kept; one that was dropped is only built again
_STATISTICS = ("row_max", "log_sum", "d_lse", "delta")  # float32, and V is never 1 for the full V: they are small
_LIKE = {"out": "query", "d_query": "query", "d_key": "key", "d_value": "value", "d_bias": "bias"}
_RESULTS = {
    "attention_fwd": ("out", "row_max", "log_sum"),
    "attention_bwd": ("d_query", "d_key", "d_value", "delta"),
    "attention_bwd_bias": ("d_bias", "delta"),
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One native call: which primitive, and its static options."""

    name: str
    options: Options

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands, in order."""
        optional = ("bias", "mask", "query_lengths", "key_value_lengths")
        present = [name for name in optional if getattr(self.options, f"has_{name}")]
        residuals = () if self.name == "attention_fwd" else ("out", "row_max", "log_sum", "d_out", "d_lse")
        return ("query", "key", "value", *present, *residuals)

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the results, in order."""
        return _RESULTS[self.name]


def call_native(name: str, options: Options, operands: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Runs one primitive on operands [V|1, ...], in the order of Call.operands; returns its results [V, ...]."""
    return _layers(Call(name, options))(*operands)


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _layers(call: Call) -> Callable[..., tuple[jax.Array, ...]]:
    @jax.custom_batching.custom_vmap
    def mapped(*operands: jax.Array) -> tuple[jax.Array, ...]:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.manual_axes and set(mesh.manual_axes) == set(mesh.axis_names):
            return _bind(call, *operands)  # every axis is manual: there is nothing to partition
        return _partitioned(call, tuple(x.shape for x in operands), mesh if mesh.manual_axes else None)(*operands)

    @mapped.def_vmap
    def fold(axis_size: int, in_batched: Sequence[bool], *operands: jax.Array) -> tuple[Any, Any]:
        old = max(x.shape[1] if batched else x.shape[0] for x, batched in zip(operands, in_batched, strict=True))
        results = mapped(*_fold_mapped_axis(call, axis_size, old, in_batched, operands))
        unfolded = tuple(x.reshape(axis_size, old, *x.shape[1:]) for x in results)
        return unfolded, (True,) * len(unfolded)

    guarded = jax.custom_jvp(mapped)
    guarded.defjvp(_refuse_derivative)
    return guarded


def _refuse_derivative(*_: Any) -> Any:
    raise NotImplementedError(NO_DERIVATIVE)


def _fold_mapped_axis(
    call: Call, axis_size: int, old: int, in_batched: Sequence[bool], operands: Sequence[jax.Array]
) -> list[jax.Array]:
    """[axis_size, old|1, ...] or, where not batched, [old|1, ...] -> [axis_size * old | 1, ...].

    `old` is V before. An operand that has one of the two axes but not the other must be copied to have both.
    """
    folded = []
    for name, x, batched in zip(call.operands, operands, in_batched, strict=True):
        stays_shared = not batched and x.shape[0] == 1 and name not in _STATISTICS
        if not stays_shared and not (batched and (x.shape[1] == old)):
            x = x if batched else x[None]
            x = jnp.broadcast_to(x, (axis_size, old, *x.shape[2:]))
            batched = True
        folded.append(partition.merge_leading_axes(x) if batched else x)
    return folded


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _partitioned(
    call: Call, shapes: tuple[tuple[int, ...], ...], manual_mesh: AbstractMesh | None
) -> Callable[..., tuple[jax.Array, ...]]:
    sizes = axis_sizes(call, shapes)
    results = tuple(_result_shape(name, call, shapes, sizes) for name in call.results)
    operand_axes = [partition.Array(AXES[name], shape) for name, shape in zip(call.operands, shapes, strict=True)]
    result_axes = [partition.Array(AXES[name], shape) for name, shape in zip(call.results, results, strict=True)]

    return partition.partitioned(functools.partial(_bind, call), operand_axes, result_axes, sizes, manual_mesh)


def _bind(call: Call, *operands: jax.Array) -> tuple[jax.Array, ...]:
    # What follows the results is workspace, whose size is that of a shard: no other layer sees it.
    return tuple(_PRIMITIVES[call.name].bind(*operands, call=call))[: len(call.results)]


def axis_sizes(call: Call, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Full size of every axis letter."""
    query, key = shapes[0], shapes[1]
    sizes = dict(zip("btnd", query[1:], strict=True)) | dict(zip("sk", key[2:4], strict=True))
    return sizes | {"v": max((shape[0] for shape in shapes), default=1) if all(s[0] for s in shapes) else 0}


def _result_shape(name: str, call: Call, shapes: Sequence[tuple[int, ...]], sizes: dict[str, int]) -> tuple[int, ...]:
    if name == "d_bias":
        return (sizes["v"], *shapes[call.operands.index("bias")][1:])
    return tuple(sizes[axis] for axis in AXES[name])


def _abstract_evaluation(*operands: Any, call: Call) -> list[Any]:
    shapes = tuple(x.shape for x in operands)
    sizes = axis_sizes(call, shapes)
    named = dict(zip(call.operands, operands, strict=True))
    specs = {name: (partition.Array(AXES[name], x.shape), x.sharding.spec) for name, x in named.items()}
    results = []
    for name in call.results:
        source = _LIKE.get(name, "query")
        like = named[source]
        shape = _result_shape(name, call, shapes, sizes)
        dtype = np.dtype(np.float32) if name in _STATISTICS else like.dtype
        # A gradient is sharded as its operand; V, which that may lack, comes from any.
        sources = [specs[source]] if name.startswith("d_") else specs.values()
        spec = partition.result_spec(partition.Array(AXES[name], shape), sources, specs.values(), sizes)
        # From `query`, whose set of varying manual axes is that of all operands (attention.py sees to it).
        aval = named["query"].update(
            shape=shape, dtype=dtype, weak_type=False, sharding=like.sharding.update(spec=spec)
        )
        results.append(aval)
    if call.name == "attention_fwd" and (size := _workspace(call, named, sizes)):
        whole = named["query"].sharding.update(spec=PartitionSpec(None))
        results.append(results[call.results.index("row_max")].update(shape=(size,), sharding=whole))
    return results


def _workspace(call: Call, operands: dict[str, Any], sizes: dict[str, int]) -> int:
    keys = [operands[name] for name in ("key", "value", "key_value_lengths") if name in operands]
    return ffi.forward_workspace(
        sizes,
        has_16_bits=keys[0].dtype.itemsize == 2,
        has_key_value_lengths=call.options.has_key_value_lengths,
        maps_keys=any(x.shape[0] != 1 for x in keys),
        mask=_mask_sizes(call, operands, sizes),
    )


def _mask_sizes(call: Call, operands: dict[str, Any], sizes: dict[str, int]) -> tuple[int, ...]:
    """Along V, B, N and T, of a mask that is read as bits; as mask_sizes of launch/workspace.h."""
    if "mask" not in operands or "bias" in operands or not np.float32(call.options.scale) > 0:
        return 0, 0, 0, 0
    *shape, keys = operands["mask"].shape
    return tuple(shape) if keys == sizes["s"] else (0, 0, 0, 0)


def _attributes(options: Options) -> dict[str, Any]:
    convert = {"scale": np.float32, "band_left": np.int64, "band_right": np.int64}
    return {name: convert.get(name, bool)(value) for name, value in dataclasses.asdict(options).items()}


def _lower(platform: str, ctx: Any, *operands: Any, call: Call) -> Any:
    ffi.require(platform)
    return jax.ffi.ffi_lowering(ffi.TARGETS[call.name])(ctx, *operands, **_attributes(call.options))


def _lower_elsewhere(ctx: Any, *_: Any, call: Call) -> Any:
    platforms = ", ".join(ctx.platforms or ctx.module_context.platforms)
    raise NotImplementedError(
        f"dhp_jax: {call.name} was lowered for platform {platforms}; it runs on cuda and cpu only, and does not fall "
        "back to an implementation that is not constant-time. Use jax.nn.dot_product_attention there."
    )


def _define(name: str) -> jax.extend.core.Primitive:
    primitive = jax.extend.core.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(_abstract_evaluation)
    mlir.register_lowering(primitive, _lower_elsewhere)
    for platform in ("cpu", "cuda"):
        mlir.register_lowering(primitive, functools.partial(_lower, platform), platform=platform)
    return primitive


ffi.register_targets()
_PRIMITIVES = {name: _define(name) for name in _RESULTS}
