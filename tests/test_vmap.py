"""Under jax.vmap, over any arguments, nested: what a Python loop gives, and no copy of what is not mapped."""

import functools
import math

import jax
import jax.numpy as jnp
from absl.testing import parameterized
from jax import lax
from programs import (
    GROUPS,
    LENGTHS,
    V,
    W,
    arguments_for,
    arrays,
    assert_close,
    assert_same_bits,
    attend,
    attend_and_differentiate,
    copied_shapes,
    expand_lengths,
    run_single,
    some,
    stack,
    subsets,
    with_cotangent,
)

import dhp_jax


def run_mapped(arguments, maps):
    function = attend_and_differentiate
    for _, groups in reversed(maps):
        mapped = expand_lengths(groups)
        function = jax.vmap(function, in_axes=({name: 0 if name in mapped else None for name in arguments},))
    return jax.jit(function)(arguments)


def run_loops(arguments, maps):
    """What run_mapped must return, by Python loops."""
    if not maps:
        return run_single(arguments)
    (size, groups), *inner = maps
    mapped = expand_lengths(groups)
    elements = [{name: x[i] if name in mapped else x for name, x in arguments.items()} for i in range(size)]
    return stack([run_loops(element, inner) for element in elements])


class VmapTest(parameterized.TestCase):
    @parameterized.named_parameters(("_".join(groups), groups) for groups in subsets(GROUPS) if groups)
    def test_any_subset_of_arguments_may_be_mapped(self, groups):
        maps = [(V, groups)]
        arguments = arguments_for(maps)
        assert_same_bits(run_mapped(arguments, maps), run_loops(arguments, maps))

    @parameterized.named_parameters(
        ("all_twice", GROUPS, GROUPS),
        ("query_twice", ("query",), ("query",)),
        ("query_then_key", ("query",), ("key",)),
        ("key_then_query", ("key", "value"), ("query", "cotangent")),
        ("all_then_bias", GROUPS, ("bias",)),
        ("bias_then_all", ("bias",), GROUPS),
        ("mask_then_lengths", ("mask",), ("lengths",)),
        ("cotangent_then_query", ("cotangent",), ("query", "mask")),
        ("overlapping", ("query", "key", "bias"), ("key", "value", "mask")),
    )
    def test_nested_maps_over_any_arguments(self, outer, inner):
        maps = [(V, outer), (W, inner)]
        arguments = arguments_for(maps)
        assert_same_bits(run_mapped(arguments, maps), run_loops(arguments, maps))

    def test_three_nested_maps(self):
        maps = [(2, ("query", "bias")), (V, ("key", "value", "query")), (4, ("mask", "query", "cotangent"))]
        arguments = arguments_for(maps)
        assert_same_bits(run_mapped(arguments, maps), run_loops(arguments, maps))

    @parameterized.named_parameters(
        ("inside", [(V, ("query", "key")), (1, ("query", "value"))]),
        ("outside", [(1, ("key", "bias")), (V, ("query", "mask"))]),
        ("alone", [(1, ("query", "key", "cotangent"))]),
    )
    def test_a_mapped_axis_of_one_element(self, maps):
        arguments = arguments_for(maps)
        assert_same_bits(run_mapped(arguments, maps), run_loops(arguments, maps))

    def test_a_mapped_axis_of_no_elements_gives_empty_results(self):
        arguments = jax.tree.map(lambda x: x[:0], arguments_for([(V, GROUPS)]))
        results = jax.vmap(attend_and_differentiate)(arguments)
        assert results["out"].shape == (0, 3, 5, 4, 8)
        assert results["d_key"].shape == (0, 3, 7, 2, 8)

    def test_every_position_of_the_mapped_axis_going_in(self):
        arguments = some(arrays(lead=(V,)), "bias", "mask")
        expected = jax.vmap(attend)(arguments)
        axes = {"query": 1, "key": -1, "value": 2, "bias": -2, "mask": 0}
        moved = {name: jnp.moveaxis(array, 0, axes[name]) for name, array in arguments.items()}
        assert_same_bits(jax.vmap(attend, in_axes=(axes,))(moved), expected)

    def test_positional_axes_with_none(self):
        arguments = arrays(lead=(V,))
        query, key, value = arguments["query"], arguments["key"][0], jnp.moveaxis(arguments["value"], 0, 3)
        mapped = jax.vmap(dhp_jax.dot_product_attention, in_axes=(0, None, 3))(query, key, value)
        loop = [dhp_jax.dot_product_attention(query[i], key, arguments["value"][i]) for i in range(V)]
        assert_same_bits(mapped, stack(loop))

    @parameterized.parameters((1, 1), (-1, 0), (2, -1), (0, 2))
    def test_every_position_of_the_mapped_axis_coming_out(self, out_axis, lse_axis):
        function = functools.partial(attend, return_residual=True)
        arguments = arrays(lead=(V,))
        out, lse = jax.vmap(function)(arguments)
        moved_out, moved_lse = jax.vmap(function, out_axes=(out_axis, lse_axis))(arguments)
        assert_same_bits(moved_out, jnp.moveaxis(out, 0, out_axis))
        assert_same_bits(moved_lse, jnp.moveaxis(lse, 0, lse_axis))

    def test_vmap_without_jit_agrees_with_vmap_under_jit(self):
        arguments = with_cotangent(arrays(lead=(V,)))
        assert_same_bits(
            jax.vmap(attend_and_differentiate)(arguments), jax.jit(jax.vmap(attend_and_differentiate))(arguments)
        )

    def test_vmap_of_jit(self):
        arguments = with_cotangent(arrays(lead=(V,)))
        assert_same_bits(jax.vmap(run_single)(arguments), run_loops(arguments, [(V, GROUPS)]))

    def test_vmap_with_static_options(self):
        options = {"is_causal": True, "local_window_size": (3, 1), "scale": 0.3}
        arguments = with_cotangent(arrays(lead=(V,)))
        mapped = jax.vmap(functools.partial(attend_and_differentiate, **options))(arguments)
        loop = [attend_and_differentiate({n: x[i] for n, x in arguments.items()}, **options) for i in range(V)]
        assert_same_bits(mapped, stack(loop))

    def test_a_sum_over_the_mapped_axis_by_its_name(self):
        arguments = some(arrays(lead=(V,)))
        summed = jax.vmap(lambda x: lax.psum(attend(x), "mapped"), axis_name="mapped")(arguments)
        assert_close(summed[0], jax.vmap(attend)(arguments).sum(0))


class RankThreeTest(parameterized.TestCase):
    """[T, N, D] arguments under vmap: how libraries without a batch axis of their own call attention."""

    def batched(self):
        """Arguments with batch axis 0 and bias and mask [B, N, T, S]."""
        arguments = arrays(k=4)
        scores = (3, 4, 5, 7)
        bias, mask = (jnp.broadcast_to(arguments[name], scores) for name in ("bias", "mask"))
        return some(arguments, *LENGTHS) | {"bias": bias, "mask": mask}

    def test_mapping_the_batch_agrees_with_passing_it(self):
        arguments = self.batched()
        lengths = {name: arguments[name][:, None] for name in LENGTHS}
        mapped = jax.vmap(functools.partial(attend, return_residual=True))(arguments | lengths)
        assert_same_bits(mapped, attend(arguments, return_residual=True))

    def test_gradients_of_the_mapped_batch(self):
        arguments = with_cotangent(some(self.batched(), "bias", "mask"))
        assert_same_bits(jax.vmap(attend_and_differentiate)(arguments), run_single(arguments))

    def test_keys_shared_by_the_mapped_batch(self):
        arguments = some(arrays())
        query, key, value = arguments["query"], arguments["key"][0], arguments["value"][0]
        mapped = jax.vmap(dhp_jax.dot_product_attention, in_axes=(0, None, None))(query, key, value)
        repeated = [jnp.broadcast_to(x, (3, *x.shape)) for x in (key, value)]
        assert_same_bits(mapped, dhp_jax.dot_product_attention(query, *repeated))

    def test_heads_mapped_one_by_one(self):
        arguments = {name: array[0] for name, array in some(arrays(k=4)).items()}

        def one_head(arguments):
            return attend({name: array[:, None] for name, array in arguments.items()})[:, 0]

        assert_same_bits(jax.vmap(one_head, in_axes=1, out_axes=1)(arguments), attend(arguments))


class CopyTest(parameterized.TestCase):
    def lowered(self, function, maps):
        arguments = arguments_for(maps)
        for _, groups in reversed(maps):
            mapped = expand_lengths(groups)
            function = jax.vmap(function, in_axes=({name: 0 if name in mapped else None for name in arguments},))
        return jax.jit(function).lower(arguments).as_text()

    def forward(self, arguments):
        return attend({name: x for name, x in arguments.items() if name != "cotangent"})

    @parameterized.named_parameters(
        ("query", [(V, ("query",))]),
        ("key", [(V, ("key",))]),
        ("bias", [(V, ("bias",))]),
        ("lengths", [(V, ("lengths",))]),
        ("query_twice", [(V, ("query",)), (W, ("query",))]),
    )
    def test_mapping_one_argument_copies_no_other(self, maps):
        assert copied_shapes(self.lowered(self.forward, maps)) == []

    def test_the_control_nested_maps_over_different_arguments_copy(self):
        maps = [(W, ("key",)), (V, ("query",))]
        assert (W, V, 3, 7, 2, 8) in copied_shapes(self.lowered(self.forward, maps))

    @parameterized.named_parameters(("query", ("query",)), ("cotangent", ("cotangent",)), ("key", ("key", "value")))
    def test_mapping_a_gradient_copies_statistics_at_most(self, groups):
        statistics = V * 3 * 5 * 4  # float32 [V, B, T, N]

        def gradients(arguments):
            # The results that need not be mapped would be copied by vmap itself.
            return {n: x for n, x in attend_and_differentiate(arguments).items() if n.startswith("d_")}

        copied = copied_shapes(self.lowered(gradients, [(V, groups)]))
        assert max(map(math.prod, copied), default=0) <= statistics
