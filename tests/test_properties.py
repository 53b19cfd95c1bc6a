"""Drawn calls: any combination of sizes, features and dtypes agrees with the float64 reference."""

import cases
import numpy as np
from absl.testing import parameterized
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import dhp_jax
from dhp_jax import reference

_LENGTHS = st.one_of(st.integers(1, 9), st.sampled_from((63, 64, 65, 127, 128, 129, 193, 577)))
_AXES = st.one_of(st.none(), st.sets(st.sampled_from("bnts")).map(lambda axes: "".join(sorted(axes))))
_WINDOW = st.one_of(st.none(), st.integers(0, 70), st.tuples(st.integers(-70, 70), st.integers(-70, 70)))
_SCALE = st.one_of(st.none(), st.floats(-1.5, 1.5, width=32))


@st.composite
def _drawn_cases(draw):
    num_key_value_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return cases.Case(
        "drawn",
        B=draw(st.integers(1, 3)),
        T=draw(_LENGTHS),
        S=draw(_LENGTHS),
        N=num_key_value_heads * group,
        K=num_key_value_heads,
        D=draw(st.sampled_from((1, 3, 8, 20, 24, 64))),
        scale=draw(_SCALE),
        is_causal=draw(st.booleans()),
        window=draw(_WINDOW),
        bias=draw(_AXES),
        bias_dtype=draw(st.sampled_from(cases.DTYPES)),
        mask=draw(_AXES),
        query_lengths=draw(st.booleans()),
        key_value_lengths=draw(st.booleans()),
    )


# The same examples in every run, so that a failure is repeatable; the first call of each example compiles.
_SETTINGS = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


class PropertyTest(parameterized.TestCase):
    @_SETTINGS
    @given(case=_drawn_cases(), dtype=st.sampled_from(cases.DTYPES), seed=st.integers(0, 2**32 - 1))
    def test_forward_is_that_of_reference(self, case, dtype, seed):
        inputs = cases.make_inputs(case, dtype, seed)
        expected = reference.forward(reference.Problem(**inputs, **case.options))
        actual = cases.run_forward(dhp_jax.dot_product_attention, inputs, **case.options)
        for name, result, wanted in zip(("out", "lse"), actual, expected, strict=True):
            cases.assert_close(result, wanted, cases.tolerance(name, dtype))

    @_SETTINGS
    @given(case=_drawn_cases(), dtype=st.sampled_from(cases.DTYPES), seed=st.integers(0, 2**32 - 1))
    @example(case=cases.Case("one bias", B=1, T=1, S=63, N=1, K=1, D=3, scale=0.0, bias=""), dtype="bfloat16", seed=4)
    def test_gradients_are_those_of_reference(self, case, dtype, seed):
        """The backward pass reads the output as it was stored, rounded; d_lse, a part of delta, tells the reference so.

        Where one value of bias is shared by all keys, its gradient is nothing but what that rounding leaves.
        """
        inputs, (d_out, _) = cases.make_inputs(case, dtype, seed), cases.make_cotangents(case, dtype, seed + 1)
        exact, _ = reference.forward(reference.Problem(**inputs, **case.options))
        d_lse = (d_out.astype(np.float64) * (exact - exact.astype(d_out.dtype).astype(np.float64))).sum(axis=-1)
        expected = cases.reference_backward(inputs, d_out, d_lse, **case.options)
        actual = cases.run_backward(dhp_jax.dot_product_attention, inputs, d_out, **case.options)
        cases.assert_gradients_close(actual, expected, dtype)
