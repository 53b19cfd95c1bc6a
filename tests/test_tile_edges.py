"""Output and gradients at sizes around the tiles of the kernels, in every width of row that has a kernel of its own.

CUDA kernels work on tiles of 16 to 128 rows by 16 to 64 keys, and on 64, 128 or 256 channels; score operands are a
kernel of their own.
"""

import itertools

import cases
from absl.testing import parameterized

import dhp_jax
from dhp_jax import reference

_SIZES = ((16, 48), (17, 47), (33, 31), (32, 49), (64, 65), (65, 64), (127, 129), (129, 96))  # queries, keys
_CHANNELS = (56, 64, 72, 128, 136, 256)
_OPTIONS = {
    "causal": {"is_causal": True},
    "everything": {
        **{"window": (90, 20), "bias": "nts", "bias_dtype": "bfloat16", "mask": "bs"},
        **{"query_lengths": True, "key_value_lengths": True},
    },
}


def _cases():
    """Every size with every sort of options; widths and dtypes take turns."""
    for index, ((name, options), (num_queries, num_keys)) in enumerate(itertools.product(_OPTIONS.items(), _SIZES)):
        for turn in range(3):
            channels = _CHANNELS[(2 * turn + index) % len(_CHANNELS)]
            case = cases.Case(
                f"{name}_{num_queries}_{num_keys}_{channels}",
                B=3,
                T=num_queries,
                S=num_keys,
                N=4,
                K=2,
                D=channels,
                **options,
            )
            yield case, cases.DTYPES[(index + turn) % len(cases.DTYPES)]


class TileEdgeTest(parameterized.TestCase):
    @parameterized.named_parameters((f"{case.name}_{dtype}", case, dtype) for case, dtype in _cases())
    def test_results_are_those_of_reference(self, case, dtype):
        inputs, (d_out, _) = cases.make_inputs(case, dtype), cases.make_cotangents(case, dtype)
        out, lse = cases.run_forward(dhp_jax.dot_product_attention, inputs, **case.options)
        expected_out, expected_lse = reference.forward(reference.Problem(**inputs, **case.options))
        cases.assert_close(out, expected_out, cases.tolerance("out", dtype))
        cases.assert_close(lse, expected_lse, cases.tolerance("lse", dtype))
        gradients = cases.run_backward(dhp_jax.dot_product_attention, inputs, d_out, **case.options)
        expected = cases.reference_backward(inputs, d_out, **case.options)
        cases.assert_gradients_close(gradients, expected, dtype)
