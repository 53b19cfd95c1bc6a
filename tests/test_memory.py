"""Memory is linear in the length: nothing of size T x S is made."""

import cases
import jax
import numpy as np
from absl.testing import parameterized

import dhp_jax


def _planned_bytes(function, length, **shapes):
    """What XLA plans for temporaries and results of a call of about `length` queries and keys."""
    shapes = {"query": (2, length, 4, 8), "key": (2, length + 1, 2, 8), "value": (2, length + 1, 2, 8)} | shapes
    inputs = {
        name: jax.ShapeDtypeStruct(shape, np.bool_ if name == "mask" else np.float32) for name, shape in shapes.items()
    }
    memory = jax.jit(function).lower(inputs).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def _gradients_of(attention):
    def gradients(inputs):
        floating = {name: array for name, array in inputs.items() if name in cases.FLOATING}
        return jax.grad(lambda floating: attention(**(inputs | floating)).sum())(floating)

    return gradients


class MemoryTest(parameterized.TestCase):
    """Of README's differences the third."""

    def test_forward_is_linear_in_length(self):
        def forward(inputs):
            return dhp_jax.dot_product_attention(**inputs)

        assert _planned_bytes(forward, 4000) < 2.1 * _planned_bytes(forward, 2000)

    def test_backward_is_linear_in_length(self):
        backward = _gradients_of(dhp_jax.dot_product_attention)
        assert _planned_bytes(backward, 4000) < 2.1 * _planned_bytes(backward, 2000)

    def test_bias_and_mask_are_never_expanded(self):
        backward = _gradients_of(dhp_jax.dot_product_attention)
        once, twice = (
            _planned_bytes(backward, length, bias=(1, 4, 1, length + 1), mask=(2, 1, length, 1))
            for length in (2000, 4000)
        )
        assert twice < 2.1 * once

    def test_jax_nn_is_not_linear(self):
        """The control: this measure tells an array of size T x S."""
        backward = _gradients_of(jax.nn.dot_product_attention)
        assert _planned_bytes(backward, 4000) > 3 * _planned_bytes(backward, 2000)
