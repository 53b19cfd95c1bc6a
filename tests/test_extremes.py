"""Rare but allowed: one axis far larger than the others, lengths of 64 bits, the less common loops of JAX."""

import functools
import itertools

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


_AMPLITUDES = np.geomspace(2**10, 2**15.5, 15)  # of query and key: exponents from 2^23 to 2^36 with 64 channels
_LOWEST = float(np.finfo(np.float32).min)
_BIASES = (
    *((1.8e8, 1.9e8), (1.48e9, 1.49e9), (1.35e8, 1.9e8), (0.8e38, 1e38), (0.0, 1e9), (1e38, -_LOWEST)),
    *((-1.8e8, -1.9e8), (-1.48e9, -1.49e9), (-1.35e8, -1.9e8), (-0.8e38, -1e38), (0.0, -1e9), (0.0, _LOWEST)),
)


@parameterized.named_parameters(
    (f"{dtype}_{channels}_{num_queries}", dtype, channels, num_queries)
    for dtype, channels, num_queries in itertools.product(cases.DTYPES, (64, 128, 256), (1, 20))
)
class LargeScoreTest(parameterized.TestCase):
    """Scores between which float32 has hardly another: keys of the highest one share the weight, others have none."""

    def _check(self, out, value, takes_part, dtype):
        for of_batch, takes in zip(np.asarray(out), takes_part, strict=True):
            expected = np.broadcast_to(np.asarray(value, np.float64)[0, takes].mean(0), of_batch.shape)
            cases.assert_close(of_batch, expected, cases.tolerance("out", dtype))

    def test_dot_products(self, dtype, channels, num_queries):
        num_keys, half = 200, jnp.arange(200) % 3 == 0
        amplitude = jnp.asarray(_AMPLITUDES, dtype)[:, None, None, None]
        query = jnp.broadcast_to(amplitude, (len(_AMPLITUDES), num_queries, 1, channels))
        key = jnp.where(half[:, None, None], amplitude / 2, amplitude)
        key = jnp.broadcast_to(key, (len(_AMPLITUDES), num_keys, 1, channels))
        value = self._value(num_keys, channels, dtype)
        out, lse = dhp_jax.dot_product_attention(query, key, jnp.broadcast_to(value, key.shape), return_residual=True)
        self._check(out, value, [~np.asarray(half)] * len(_AMPLITUDES), dtype)
        highest = np.asarray(amplitude, np.float64)[:, :, 0] ** 2 * channels**0.5
        cases.assert_close(lse, np.broadcast_to(highest, lse.shape), 1e-5)

    def test_biases(self, dtype, channels, num_queries):
        num_keys = 260
        # Either comes first: kernels go over keys from one end or from the other.
        biases = np.asarray([pair[::order] for pair in _BIASES for order in (1, -1)], np.float32)
        bias = np.repeat(biases, num_keys // 2, axis=1)
        random = np.random.default_rng(1)
        query, key = (
            jnp.asarray(random.standard_normal((len(biases), length, 1, channels)), dtype)
            for length in (num_queries, num_keys)
        )
        value = self._value(num_keys, channels, dtype)
        out = dhp_jax.dot_product_attention(query, key, jnp.broadcast_to(value, key.shape), bias=bias[:, None, None])
        weighs = np.abs(bias).min(1) > 0  # else scores near 0 have weights of their own
        self._check(out[weighs], value, (bias == bias.max(1, keepdims=True))[weighs], dtype)
        assert np.isfinite(np.asarray(out, np.float32)).all()

    def _value(self, num_keys, channels, dtype):
        return jnp.asarray(np.random.default_rng(0).standard_normal((1, num_keys, 1, channels)), dtype)


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


class FewKeysTest(parameterized.TestCase):
    """Rows that see few keys: what rounding takes from one weight, or gives to it, no other makes good."""

    @parameterized.product(
        dtype=("bfloat16", "float16"), channels=(40, 64, 128), structure=("causal", "full", "mask", "window")
    )
    def test_log_sum_exp_is_that_of_weights_before_they_are_rounded(self, dtype, channels, structure):
        options = {"causal": {"is_causal": True}, "window": {"window": (5, 0)}}.get(structure, {})
        sizes = {"B": 2, "T": 100, "S": 5 if structure == "full" else 100, "N": 4, "K": 2, "D": channels}
        case = cases.Case("", **sizes, **options, mask="ts" if structure == "mask" else None)
        inputs = cases.make_inputs(case, dtype)
        if structure == "mask":
            inputs["mask"] = np.random.default_rng(2).random(inputs["mask"].shape) < 0.04
        self._assert_exact(case, inputs)

    @parameterized.product(dtype=("bfloat16", "float16"), channels=(40, 64, 128))
    def test_likewise_of_many_rows(self, dtype, channels):
        """Too many for the kernel for few, and so few that two blocks would share their keys if there were more."""
        case = cases.Case("", B=1, T=2200, S=5, N=4, K=2, D=channels)
        self._assert_exact(case, cases.make_inputs(case, dtype))

    def _assert_exact(self, case, inputs):
        _, lse = cases.run_forward(dhp_jax.dot_product_attention, inputs, **case.options)
        _, expected = reference.forward(reference.Problem(**inputs, **case.options))
        np.testing.assert_allclose(lse, expected, rtol=0, atol=5e-4)
