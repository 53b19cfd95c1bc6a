"""What only a GPU does in reasonable time: long sequences beside float64 and cuDNN, and ten thousand decoding steps."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import dhp_jax

pytestmark = pytest.mark.gpu

_B, _N, _K = 2, 4, 2
_ROWS = 40  # query rows that float64 answers for
_WORSE = 1.2  # times cuDNN's error
_LSE = 5e-4


def _drawn(length, channels, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = ((_B, length, _N, channels), (_B, length, _K, channels), (_B, length, _K, channels))
    return [jax.random.normal(key, size, dtype) for key, size in zip(keys, sizes, strict=True)]


def _exact(query, key, value, rows, is_causal):
    """Output [B, rows, N, D] and log-sum-exp [B, rows, N] of these query rows, in float64."""
    query, key, value = (np.asarray(x, np.float32).astype(np.float64) for x in (query[:, rows], key, value))
    key, value = (np.repeat(x, _N // _K, axis=2) for x in (key, value))
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[-1])
    if is_causal:
        scores = np.where(np.arange(key.shape[2]) <= rows[:, None], scores, -np.inf)
    most = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - most)
    sums = weights.sum(axis=-1, keepdims=True)
    out, lse = weights / sums @ value, (most + np.log(sums))[..., 0]
    return out.swapaxes(1, 2), lse.swapaxes(1, 2)


def _error(out, rows, exact):
    """Relative to all of the exact answer."""
    return np.linalg.norm(np.asarray(out, np.float32)[:, rows].astype(np.float64) - exact) / np.linalg.norm(exact)


class LongSequenceTest(parameterized.TestCase):
    @parameterized.product(
        length=[4096, 32768], channels=[64, 96, 128, 192, 256], is_causal=[False, True], dtype=["bfloat16", "float16"]
    )
    def test_errors_are_those_of_cudnn_at_most(self, length, channels, is_causal, dtype):
        arrays = _drawn(length, channels, dtype)
        rows = np.unique(np.geomspace(1, length, _ROWS).astype(int)) - 1
        exact, exact_lse = _exact(*arrays, rows, is_causal)
        ours, lse = dhp_jax.dot_product_attention(*arrays, is_causal=is_causal, return_residual=True)
        theirs = jax.nn.dot_product_attention(*arrays, is_causal=is_causal, implementation="cudnn")
        assert _error(ours, rows, exact) <= _WORSE * _error(theirs, rows, exact)
        np.testing.assert_allclose(np.asarray(lse)[:, rows], exact_lse, rtol=0, atol=_LSE)

    @parameterized.product(length=[4096 + 63, 32768], channels=[64, 128, 256], dtype=["bfloat16", "float16"])
    def test_true_lengths_hide_what_is_behind_them(self, length, channels, dtype):
        query, key, value = _drawn(length, channels, dtype)
        true = np.array([length - 100, length // 3])
        hidden = jnp.arange(length)[:, None, None] >= jnp.asarray(true)[:, None, None, None]
        key, value = (jnp.where(hidden, jnp.nan, x).astype(dtype) for x in (key, value))
        out = dhp_jax.dot_product_attention(query, key, value, key_value_seq_lengths=true)
        rows = np.arange(0, length, length // _ROWS)
        for b, end in enumerate(true):
            exact, _ = _exact(query[b : b + 1], key[b : b + 1, :end], value[b : b + 1, :end], rows, False)
            plain = dhp_jax.dot_product_attention(query[b : b + 1], key[b : b + 1, :end], value[b : b + 1, :end])
            assert _error(out[b : b + 1], rows, exact) <= _WORSE * _error(plain, rows, exact)


class ManyStepsTest(parameterized.TestCase):
    def test_memory_and_time_of_ten_thousand_steps_stay(self):
        sizes = (4, 4096, 2, 64)
        cache = dhp_jax.KVCache.create(*sizes, "bfloat16")
        token = jax.random.normal(jax.random.key(1), (sizes[0], 1, *sizes[2:]), "bfloat16")
        query = jnp.repeat(token, 4, axis=2)

        @functools.partial(jax.jit, donate_argnames="cache")
        def step(cache, query):
            # The output goes on as a query: steps wait for each other.
            cache = cache.truncate(cache.length % sizes[1]).append_oblivious(token, token)
            return cache, cache.attend(query)

        held, seconds = [], []
        for _ in range(10):
            start = time.perf_counter()
            for _ in range(1000):
                cache, query = step(cache, query)
            jax.block_until_ready(query)
            seconds.append(time.perf_counter() - start)
            held.append(jax.devices()[0].memory_stats()["bytes_in_use"])
        assert held[1:] == held[1:2] * 9
        assert statistics.median(seconds[-4:]) <= 1.05 * statistics.median(seconds[1:5])
