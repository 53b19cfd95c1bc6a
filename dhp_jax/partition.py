"""Sharding: the mapped axis, batch and heads stay where they are; sequences and channels are gathered.

A custom call that says nothing about sharding is gathered whole by XLA. One whose rule says that positions need
replication is still handed position-sharded operands, and would compute attention over pieces of the sequence. So
the callback below builds every sharding anew from the axes that may be sharded, and takes none over as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

Axes = tuple[str, ...]  # names of mesh axes
Function = Callable[..., tuple[jax.Array, ...]]

_WHOLE = "tsd"  # axes that no shard may cut


@dataclasses.dataclass(frozen=True)
class Array:
    """An operand or result: its axis letters (see primitive.AXES) and shape."""

    letters: str
    shape: tuple[int, ...]

    def axes(self) -> Iterator[tuple[str, int]]:
        return zip(self.letters, self.shape, strict=True)


def partitioned(
    bind: Function, operands: Sequence[Array], results: Sequence[Array], sizes: dict[str, int]
) -> Function:
    """`bind` with sharding rules. `sizes` gives the full size of every axis letter."""

    def partition(mesh: Any, arg_shapes: Any, result_shapes: Any) -> Any:
        shardings = [shape.sharding for shape in arg_shapes]
        if not all(isinstance(sharding, NamedSharding) for sharding in shardings):
            return _partition_inside_manual(mesh, bind, operands, arg_shapes, result_shapes)
        sharded = _shardable_axes(mesh, operands, [sharding.spec for sharding in shardings], sizes)
        summed = [_missing_axes(array, sharded, sizes) for array in results]

        def local(*shards: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(_sum_over(x, axes) for x, axes in zip(bind(*shards), summed, strict=True))

        def shardings_of(arrays: Sequence[Array]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, _spec(array, sharded, sizes)) for array in arrays)

        return mesh, local, shardings_of(results), shardings_of(operands)

    function = custom_partitioning(bind)
    rule, factor_sizes = sharding_rule(operands, results, sizes)
    function.def_partition(
        partition=partition, sharding_rule=rule, need_replication_factors=("t", "d", "s"), **factor_sizes
    )
    return function


def sharding_rule(
    operands: Sequence[Array], results: Sequence[Array], sizes: dict[str, int]
) -> tuple[str, dict[str, int]]:
    """The Shardy rule of a call, and the sizes of the factors that it cannot infer.

    Query heads are (key/value head, member of its group), so that both head axes share the factor k. An axis that
    repeats (size 1 under a larger one) gets a factor of its own.
    """
    group = sizes["n"] // sizes["k"]
    grouped = sizes["k"] > 1 and group > 1
    heads = {"n": "(k g)", "k": "k"} if grouped else {"n": "n", "k": "n" if group == 1 else "k"}
    repeats = itertools.count()

    def factors(array: Array) -> str:
        return " ".join(
            heads.get(letter, letter) if size == sizes[letter] else f"r{next(repeats)}" for letter, size in array.axes()
        )

    rule = ", ".join(map(factors, operands)) + " -> " + ", ".join(map(factors, results))
    return rule, {"g": group} if grouped else {}


def result_spec(
    result: Array, operands: Sequence[Array], specs: Sequence[Any], sizes: dict[str, int]
) -> PartitionSpec:
    """Sharding of a result in its type: on each axis, that of the first operand which has the axis sharded."""
    first: dict[str, Any] = {}
    for array, spec in zip(operands, specs, strict=True):
        for (letter, size), entry in zip(array.axes(), _entries(spec, array), strict=True):
            if letter not in _WHOLE and size == sizes[letter] and entry:
                first.setdefault(letter, entry)
    return PartitionSpec(*(first.get(letter) if size == sizes[letter] else None for letter, size in result.axes()))


def _entries(spec: Any, array: Array) -> list[Axes]:
    """The mesh axes of each axis of an array."""

    def names(entry: Any) -> Axes:
        if entry is None or entry is PartitionSpec.UNCONSTRAINED:
            return ()
        return entry if isinstance(entry, tuple) else (entry,)

    entries = [names(entry) for entry in spec]
    return entries + [()] * (len(array.shape) - len(entries))


def _shardable_axes(
    mesh: Any, operands: Sequence[Array], specs: Sequence[Any], sizes: dict[str, int]
) -> dict[str, Axes]:
    """The mesh axes to shard v, b and the heads over: those of the first operand that is sharded there."""
    found: dict[str, Axes] = {"v": (), "b": (), "n": ()}
    for array, spec in zip(operands, specs, strict=True):
        for (letter, size), names in zip(array.axes(), _entries(spec, array), strict=True):
            factor = "n" if letter == "k" else letter
            taken = {name for other in found.values() for name in other}
            if factor not in found or found[factor] or size != sizes[letter] or taken & set(names):
                continue
            extent = math.prod(mesh.shape[name] for name in names)
            # Several key/value heads must split as the query heads do; a single one is shared by all shards.
            splits = [size] if factor != "n" else [sizes["n"], sizes["n"] if sizes["k"] == 1 else sizes["k"]]
            if all(split % extent == 0 for split in splits):
                found[factor] = names
    return found


def _spec(array: Array, sharded: dict[str, Axes], sizes: dict[str, int]) -> PartitionSpec:
    def entry(letter: str, size: int) -> Axes | None:
        if letter in _WHOLE or size != sizes[letter] or (letter == "k" and size == 1):
            return None
        return sharded["n" if letter == "k" else letter] or None

    return PartitionSpec(*(entry(letter, size) for letter, size in array.axes()))


def _missing_axes(result: Array, sharded: dict[str, Axes], sizes: dict[str, int]) -> Axes:
    """Mesh axes that split the work but not this result: each shard holds a part of its sum."""
    kept = {name for names in _entries(_spec(result, sharded, sizes), result) for name in names}
    return tuple(name for names in sharded.values() for name in names if name not in kept)


def _sum_over(x: jax.Array, axes: Axes) -> jax.Array:
    if not axes:
        return x
    # Inside the callback of an explicitly sharded program, jax 0.12 refuses to type a sum; the shards are local here.
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        return lax.psum(x.astype(jnp.float32), axes).astype(x.dtype)


def _partition_inside_manual(
    mesh: Any, bind: Function, operands: Sequence[Array], arg_shapes: Sequence[Any], result_shapes: Sequence[Any]
) -> Any:
    """Inside a partly manual shard_map the shardings have no spec: take them as they are, if no sequence is cut."""
    for array, shape in zip(operands, arg_shapes, strict=True):
        local = shape.sharding.shard_shape(tuple(shape.shape))
        for (letter, size), local_size in zip(array.axes(), local, strict=True):
            if letter in _WHOLE and local_size != size:
                raise ValueError(
                    f"dhp_jax: inside a partly manual shard_map, an operand of shape {array.shape} is sharded along a "
                    f"sequence or channel axis (each shard has {local}); only batch and heads may be sharded there. "
                    "Gather it first, or make the mesh axis manual."
                )
    return mesh, bind, tuple(s.sharding for s in result_shapes), tuple(s.sharding for s in arg_shapes)
