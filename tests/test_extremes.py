"""Rare but allowed: one axis far larger than the others, lengths of 64 bits, the less common loops of JAX."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from programs import arrays, assert_same_bits, attend, attend_and_differentiate, some, with_cotangent

import dhp_jax
from dhp_jax import reference

_HUGE = 100_000
_LONG = (
    ("many_keys", {"b": 1, "t": 1, "s": _HUGE, "n": 2, "k": 1}),
    ("many_queries", {"b": 1, "t": _HUGE, "s": 1, "n": 2, "k": 1}),
)
# One of them at each end, and one between.
_SOME = (0, 54_321, _HUGE - 1)

run_jitted = jax.jit(attend_and_differentiate)


class LongTest(parameterized.TestCase):
    @parameterized.named_parameters(*_LONG)
    def test_output_is_that_of_reference(self, sizes):
        inputs = jax.tree.map(np.asarray, some(arrays(**sizes)))
        out, lse = cases.run_forward(dhp_jax.dot_product_attention, inputs)
        expected = reference.forward(reference.Problem(**inputs))
        # The error of a sum grows with the root of its length; the lengths of `cases` end at 193.
        factor = (_HUGE / 193) ** 0.5
        for name, actual, wanted in zip(("out", "lse"), (out, lse), expected, strict=True):
            cases.assert_close(actual, wanted, factor * cases.tolerance(name, "float32"))

    @parameterized.named_parameters(*_LONG)
    def test_gradients_are_those_of_reference(self, sizes):
        inputs = jax.tree.map(np.asarray, some(arrays(**sizes)))
        d_out = np.random.default_rng(1).standard_normal(inputs["query"].shape).astype(np.float32)
        actual = cases.run_backward(dhp_jax.dot_product_attention, inputs, d_out)
        expected = cases.reference_backward(inputs, d_out)
        scale = max(np.abs(gradient).max() for gradient in expected.values())
        for name, gradient in actual.items():
            tolerance = (_HUGE / 193) ** 0.5 * cases.tolerance(name, "float32")
            cases.assert_close(gradient, expected[name], tolerance, scale, name)


class ManyTest(parameterized.TestCase):
    """One small problem many times over, along each axis that repeats it."""

    def test_mapped_elements_have_the_bits_of_each_alone(self):
        many = with_cotangent(some(arrays(lead=(_HUGE,), b=1, t=1, s=3, n=1, k=1, d=8)))
        results = jax.jit(jax.vmap(attend_and_differentiate))(many)
        for index in _SOME:
            assert_same_bits(_cut(results, index), run_jitted(_cut(many, index)))

    def test_batch_elements_have_the_bits_of_each_alone(self):
        many = with_cotangent(some(arrays(b=_HUGE, t=1, s=3, n=1, k=1, d=8)))
        results = run_jitted(many)
        for index in _SOME:
            cut = slice(index, index + 1)
            assert_same_bits(_cut(results, cut), run_jitted(_cut(many, cut)))

    def test_heads_have_the_bits_of_each_alone(self):
        many = some(arrays(b=1, t=1, s=3, n=_HUGE, k=1, d=8))
        out = jax.jit(attend)(many)
        for index in _SOME:
            alone = many | {"query": many["query"][:, :, index : index + 1]}
            assert_same_bits(out[:, :, index : index + 1], jax.jit(attend)(alone))


def _cut(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


class LengthTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("int64", np.array([2**63 - 1, 2**32 + 1, -(2**40)])),
        ("uint64", np.array([2**64 - 1, 2**63, 0], np.uint64)),
        ("list", [2**63 - 1, 2**32 + 1, -(2**40)]),
    )
    def test_64_bit_lengths_do_not_wrap_around_without_64_bit_mode(self, lengths):
        arguments = some(arrays())
        no_limit = np.array([2**31 - 1, 2**31 - 1, 0], np.int32)
        out = attend(arguments | {"key_value_seq_lengths": lengths})
        assert_same_bits(out, attend(arguments | {"key_value_seq_lengths": no_limit}))


class UseTest(parameterized.TestCase):
    """Where the plain loop over calls says what the result must be."""

    def setUp(self):
        super().setUp()
        self.arguments = some(arrays(), "bias")
        self.queries = jnp.stack([some(arrays(seed=seed))["query"] for seed in range(5)])
        self.expected = jnp.stack([self.attend(query) for query in self.queries])

    @functools.cached_property
    def attend(self):
        return jax.jit(lambda query: attend(self.arguments | {"query": query}))

    def test_a_condition_for_each_mapped_element(self):
        takes = jnp.arange(5) % 2 == 0
        out = jax.vmap(lambda take, query: jax.lax.cond(take, self.attend, lambda query: query, query))(
            takes, self.queries
        )
        assert_same_bits(out, jnp.where(takes[:, None, None, None, None], self.expected, self.queries))

    def test_map_in_batches_that_do_not_divide_the_axis(self):
        assert_same_bits(jax.lax.map(self.attend, self.queries, batch_size=2), self.expected)

    def test_pmap_over_devices(self):
        queries = jnp.concatenate([self.queries, self.queries])[: jax.device_count()]
        expected = jnp.concatenate([self.expected, self.expected])[: jax.device_count()]
        assert_same_bits(jax.pmap(lambda query: self.attend(query))(queries), expected)

    def test_each_device_by_its_own(self):
        for device, query, expected in zip(jax.devices(), self.queries, self.expected, strict=False):
            out = self.attend(jax.device_put(query, device))
            assert out.devices() == {device}
            assert_same_bits(out, expected)

    def test_a_branch_by_platform(self):
        out = jax.jit(
            lambda query: jax.lax.platform_dependent(query, cpu=self.attend, cuda=self.attend, default=lambda x: x)
        )(self.queries[0])
        assert_same_bits(out, self.expected[0])

    def test_a_loop_whose_carry_is_the_query(self):
        _, out = jax.lax.while_loop(
            lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, self.attend(carry[1])), (0, self.queries[0])
        )
        assert_same_bits(out, self.attend(self.attend(self.attend(self.queries[0]))))
