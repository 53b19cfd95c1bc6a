"""Sharding: the mapped axis, batch and heads stay where they are; sequences and channels are gathered.

A custom call that says nothing about sharding is gathered whole by XLA. One whose rule says that positions need
replication is still handed position-sharded operands, and would compute attention over pieces of the sequence. So
the callback below builds every sharding anew from the axes that may be sharded, and takes none over as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Axes = tuple[str, ...]  # names of mesh axes
Function = Callable[..., tuple[jax.Array, ...]]

_WHOLE = "tsd"  # axes that no shard may cut


@dataclasses.dataclass(frozen=True)
class Array:
    """An operand or result: its axis letters (see primitive.AXES) and shape."""

    letters: str
    shape: tuple[int, ...]

    def axes(self) -> Iterator[tuple[str, int]]:
        """(letter, size) of each axis."""
        return zip(self.letters, self.shape, strict=True)


Source = tuple[Array, Any]  # an operand, and the PartitionSpec in its type


def partitioned(
    bind: Function,
    operands: Sequence[Array],
    results: Sequence[Array],
    sizes: dict[str, int],
    manual_mesh: AbstractMesh | None,
) -> Function:
    """`bind` with sharding rules.

    `sizes` gives the full size of every axis letter. `manual_mesh` is the mesh of the shard_map around the call, if
    any: inside one that is partly manual, JAX gives the callback shardings without names.
    """

    def partition(mesh: Any, arg_shapes: Any, result_shapes: Any) -> Any:
        shardings = [shape.sharding for shape in arg_shapes]
        if all(isinstance(sharding, NamedSharding) for sharding in shardings):
            sharded = _shardable_axes(mesh, operands, [sharding.spec for sharding in shardings], sizes)
        else:
            mesh, specs = _guess_specs(manual_mesh, operands, shardings)
            sharded = _shardable_axes(mesh, operands, specs, sizes)
            # XLA cannot sum over a part of the mesh here: what would need a sum is gathered instead.
            missing = {axis for array in results for axis in _missing_axes(array, sharded, sizes)}
            sharded = {factor: () if missing & set(axes) else axes for factor, axes in sharded.items()}
        summed = [_missing_axes(array, sharded, sizes) for array in results]

        def local(*shards: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(_sum_over(x, axes) for x, axes in zip(bind(*shards), summed, strict=True))

        def shardings_of(arrays: Sequence[Array]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, _spec(array, sharded, sizes)) for array in arrays)

        return mesh, local, shardings_of(results), shardings_of(operands)

    def rule(mesh: Any, *_: Any) -> tuple[str, dict[str, Any]]:
        text, factor_sizes = sharding_rule(operands, results, sizes, None if mesh.empty else mesh.size)
        return text, {"need_replication_factors": ("t", "d", "s"), **factor_sizes}

    function = custom_partitioning(bind)
    function.def_partition(partition=partition, sharding_rule=rule)
    return function


def sharding_rule(
    operands: Sequence[Array], results: Sequence[Array], sizes: dict[str, int], num_devices: int | None
) -> tuple[str, dict[str, int]]:
    """The Shardy rule of a call, and the sizes of the factors that it cannot infer.

    Query heads are (key/value head, member of its group), so both head axes share the factor k; but where the mesh
    could split k unevenly, Shardy would cut a mesh axis in two, which JAX cannot express, and the two head axes get
    factors of their own. An axis that repeats (size 1 under a larger one) has its own factor too.
    """
    group = sizes["n"] // sizes["k"]
    linked = group > 1 and num_devices is not None and sizes["k"] > 1 and sizes["k"] % num_devices == 0
    heads = {"n": "(k g)", "k": "k"} if linked else {"n": "n", "k": "n" if group == 1 else "k"}
    repeats = itertools.count()

    def factors(array: Array) -> str:
        return " ".join(
            heads.get(letter, letter) if size == sizes[letter] else f"r{next(repeats)}" for letter, size in array.axes()
        )

    rule = ", ".join(map(factors, operands)) + " -> " + ", ".join(map(factors, results))
    return rule, {"g": group} if linked else {}


def result_spec(
    result: Array, sources: Iterable[Source], all_operands: Iterable[Source], sizes: dict[str, int]
) -> PartitionSpec:
    """Sharding of a result in its type: on each axis, that of the first of `sources` which has the axis sharded.

    The mapped axis, which a source may lack, is sharded as in the first of all operands.
    """
    first: dict[str, Any] = {}
    for candidates, letters in ((sources, "bnk"), (all_operands, "v")):
        for array, spec in candidates:
            for (letter, size), entry in zip(array.axes(), _entries(spec, array), strict=True):
                if letter in letters and size == sizes[letter] and entry:
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


def _guess_specs(
    manual_mesh: AbstractMesh | None, operands: Sequence[Array], shardings: Sequence[Any]
) -> tuple[Any, list[PartitionSpec]]:
    """A mesh, and a spec for each operand, where JAX hands over shardings that name no mesh axis.

    A guess from the shape of the shards may name another axis of the same size; XLA then moves data between devices
    that it need not have moved, and the result is the same.
    """
    if manual_mesh is None:
        devices = sorted(shardings[0].device_set, key=lambda device: device.id)
        return Mesh(devices, ("replicas",)), [PartitionSpec()] * len(operands)
    # XLA counts only the devices along the axes that are not manual.
    automatic = {name: size for name, size in manual_mesh.shape.items() if name not in manual_mesh.manual_axes}

    def spec(array: Array, sharding: Any) -> PartitionSpec:
        pieces = [
            size // max(local, 1) for size, local in zip(array.shape, sharding.shard_shape(array.shape), strict=True)
        ]
        return PartitionSpec(*(_axes_of_extent(automatic, extent) for extent in pieces))

    automatic_mesh = AbstractMesh(tuple(automatic.values()), tuple(automatic))
    return automatic_mesh, [spec(array, sharding) for array, sharding in zip(operands, shardings, strict=True)]


def _axes_of_extent(sizes: dict[str, int], extent: int) -> Axes | None:
    if extent == 1:
        return None
    for count in range(1, len(sizes) + 1):
        for names in itertools.combinations(sizes, count):
            if math.prod(sizes[name] for name in names) == extent:
                return names
    return None


def gather_sequences(array: jax.Array, letters: str) -> jax.Array:
    """Where the type of an array shards a sequence or channel axis (explicit sharding), the array without that.

    Its transpose shards the gradient as the array was.
    """
    sharding = jax.typeof(array).sharding
    entries = list(sharding.spec)
    if not any(entry and letter in _WHOLE for letter, entry in zip(letters, entries, strict=False)):
        return array
    kept = [None if letter in _WHOLE else entry for letter, entry in zip(letters, entries, strict=False)]
    return jax.sharding.reshard(array, sharding.update(spec=PartitionSpec(*kept)))


def merge_leading_axes(array: jax.Array) -> jax.Array:
    """[U, V, ...] -> [U * V, ...], also where the type of the array shards one of the two (explicit sharding)."""
    shape = (array.shape[0] * array.shape[1], *array.shape[2:])
    sharding = jax.typeof(array).sharding
    first, second, *rest = _entries(sharding.spec, Array("." * array.ndim, array.shape))
    if not first and not second:
        return array.reshape(shape)
    spec = PartitionSpec((*first, *second), *(names or None for names in rest))
    return lax.reshape(array, shape, out_sharding=sharding.update(spec=spec))
