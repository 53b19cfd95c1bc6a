"""Programs call dhp_jax the way MaxText, Equinox and the quickstart do, and get the results of jax.nn.

Axis letters as everywhere, and M model channels, L layers.
"""

import functools
import pathlib
import re
import runpy
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from programs import assert_close, native_calls

import dhp_jax

B, T, N, K, D, M, L = 3, 21, 6, 2, 8, 10, 4
WINDOW = 5  # tokens that a query sees, its own with them


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _context(query, key, value):
    """Attention as in the decoders of MaxText: the query comes scaled, and sees the last WINDOW tokens."""
    return dhp_jax.dot_product_attention(
        query, key, value, scale=1.0, is_causal=True, local_window_size=(WINDOW - 1, 0)
    )


def _context_of_jax_nn(query, key, value):
    row, column = np.arange(T)[:, None], np.arange(T)
    mask = (column <= row) & (column > row - WINDOW)
    return jax.nn.dot_product_attention(query, key, value, mask=mask[None, None], scale=1.0)


class DecoderTest(parameterized.TestCase):
    """A stack of checkpointed decoder layers, scanned as MaxText does."""

    def _arguments(self):
        shapes = {"query": (M, N, D), "key": (M, K, D), "value": (M, K, D), "out": (N, D, M)}
        weights = {name: _normal(L, *shape, seed=seed) / 7 for seed, (name, shape) in enumerate(shapes.items(), 1)}
        return weights, _normal(B, T, M)

    def _loss(self, context, policy, weights, x):
        @functools.partial(jax.checkpoint, policy=policy)
        def layer(x, weights):
            project = functools.partial(jnp.einsum, "btm,mnd->btnd", x)
            query, key, value = (project(weights[name]) for name in ("query", "key", "value"))
            encoded = context(query / np.float32(D**0.5), key, value)
            return x + jnp.einsum("btnd,ndm->btm", encoded, weights["out"]), None

        out, _ = jax.lax.scan(layer, x, weights)
        return jnp.mean(out**2)

    def _gradient(self, context, *names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        return jax.jit(jax.value_and_grad(functools.partial(self._loss, context, policy), argnums=(0, 1)))

    def test_loss_and_gradients_are_those_of_jax_nn(self):
        ours = self._gradient(_context, *dhp_jax.CHECKPOINT_NAMES)(*self._arguments())
        theirs = self._gradient(_context_of_jax_nn)(*self._arguments())
        assert_close(ours, theirs, rtol=1e-5, atol=2e-6)

    @parameterized.named_parameters(("saved", dhp_jax.CHECKPOINT_NAMES, 1), ("control_not_saved", ("context",), 2))
    def test_attention_runs_again_only_where_it_is_not_saved(self, names, forward_calls):
        lowered = self._gradient(_context, *names).lower(*self._arguments())
        calls = native_calls(lowered.as_text())  # of one layer: a scan has its body once for each direction
        assert (calls.count("fwd"), calls.count("bwd")) == (forward_calls, 1)

    def test_one_token_attends_to_a_cache_in_use_up_to_the_sum_of_its_segment_ids(self):
        query, key, value = _normal(B, 1, N, D), _normal(B, T, K, D, seed=1), _normal(B, T, K, D, seed=2)
        segment_ids = np.arange(T) < np.array([[4], [21], [13]])

        @jax.jit
        def decode(segment_ids):
            lengths = jnp.sum(segment_ids, axis=-1)
            return dhp_jax.dot_product_attention(query, key, value, scale=1.0, key_value_seq_lengths=lengths)

        expected = jax.nn.dot_product_attention(query, key, value, mask=segment_ids[:, None, None], scale=1.0)
        assert_close(decode(segment_ids.astype(np.int32)), expected)


class EquinoxTest(parameterized.TestCase):
    """A module that handles one sequence, [T, M], mapped over the batch by its caller."""

    def _module(self, attend):
        eqx = pytest.importorskip("equinox", reason="Equinox is not installed; the extra `test` has it")

        class Attention(eqx.Module):
            query: eqx.nn.Linear
            key_value: eqx.nn.Linear
            out: eqx.nn.Linear
            attend: object = eqx.field(static=True)

            def __init__(self, key):
                self.query, self.key_value, self.out = (
                    eqx.nn.Linear(*sizes, key=one)
                    for sizes, one in zip(
                        ((M, N * D), (M, 2 * K * D), (N * D, M)), jax.random.split(key, 3), strict=True
                    )
                )
                self.attend = attend

            def __call__(self, x, mask):
                query = jax.vmap(self.query)(x).reshape(T, N, D)
                key, value = jnp.split(jax.vmap(self.key_value)(x).reshape(T, 2 * K, D), 2, axis=1)
                encoded = self.attend(query, key, value, mask=mask, is_causal=True)
                return jax.vmap(self.out)(encoded.reshape(T, N * D))

        return eqx, Attention(jax.random.key(0))

    x = _normal(B, T, M)
    mask = np.random.default_rng(2).random((B, 1, 1, T)) < 0.7
    mask[..., 0] = True

    @staticmethod
    def _loss(module, x, mask):
        return jnp.mean(jax.vmap(module)(x, mask[:, 0]) ** 2)

    def test_output_is_that_of_jax_nn(self):
        def run(attend):
            eqx, module = self._module(attend)
            return eqx.filter_jit(lambda module: jax.vmap(module)(self.x, self.mask[:, 0]))(module)

        assert_close(run(dhp_jax.dot_product_attention), run(jax.nn.dot_product_attention))

    def test_gradients_are_those_of_jax_nn(self):
        def run(attend):
            eqx, module = self._module(attend)
            return jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(self._loss))(module, self.x, self.mask))

        assert_close(run(dhp_jax.dot_product_attention), run(jax.nn.dot_product_attention), rtol=2e-5)

    def test_batch_is_one_native_call(self):
        eqx, module = self._module(dhp_jax.dot_product_attention)
        parameters, static = eqx.partition(module, eqx.is_array)
        lowered = jax.jit(lambda parameters: self._loss(eqx.combine(parameters, static), self.x, self.mask))
        assert native_calls(lowered.lower(parameters).as_text()) == ["fwd"]


class ExampleTest(parameterized.TestCase):
    """What examples/flax_transformer.py compares with."""

    @parameterized.parameters(
        ("gpu", "bfloat16", "cudnn"), ("gpu", "float32", None), ("cpu", "bfloat16", None), ("cpu", "float32", None)
    )
    def test_jax_takes_its_fastest_way_that_there_is(self, backend, dtype, implementation):
        examples = pathlib.Path(__file__).parent.parent / "examples"
        with mock.patch.object(sys, "path", [str(examples), *sys.path]):
            model = runpy.run_path(str(examples / "transformer_model.py"))
        with mock.patch.object(jax, "default_backend", return_value=backend):
            assert model["fastest_of_jax"](dtype).keywords == {"implementation": implementation}


class QuickstartTest(parameterized.TestCase):
    """examples/quickstart.py as a reader runs it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        path = pathlib.Path(__file__).parent.parent / "examples" / "quickstart.py"
        result = subprocess.run([sys.executable, path], stdout=subprocess.PIPE, text=True, check=True)
        cls.lines = result.stdout.splitlines()

    def test_prints_one_line_for_each_step(self):
        assert [line.split(":")[0] for line in self.lines] == ["call", "jit", "lengths", "grad", "causal", "vmap"]

    def test_every_difference_from_jax_nn_is_rounding(self):
        differences = [float(text) for line in self.lines for text in re.findall(r"([\d.]+e[+-]\d+) from jax.nn", line)]
        assert len(differences) == 3
        assert max(differences) < 1e-5

    def test_keys_past_a_length_change_nothing(self):
        assert "lengths: with NaN past them, the same bits: True" in self.lines
