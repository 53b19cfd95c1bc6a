"""Attention modules of Flax with their own or another attention function, and inputs for them."""

import numpy as np
import pytest

nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed; the extra `test` has it")
linen = pytest.importorskip("flax.linen", reason="Flax is not installed; the extra `test` has it")

FEATURES, HEADS, CHANNELS = 12, 4, 8
OWN = {"nnx": nnx.dot_product_attention, "linen": linen.dot_product_attention}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_mask(*shape):
    """A random mask without an empty row, for which Flax gives the mean of all values."""
    mask = np.random.default_rng(2).random(shape) < 0.6
    mask[..., 0] = True
    return mask


def nnx_module(attention_fn, **options):
    options = {"num_heads": HEADS, "qkv_features": HEADS * CHANNELS, "decode": False} | options
    return nnx.MultiHeadAttention(in_features=FEATURES, attention_fn=attention_fn, rngs=nnx.Rngs(0), **options)


def linen_module(attention_fn, **options):
    options = {"num_heads": HEADS, "qkv_features": HEADS * CHANNELS} | options
    return linen.MultiHeadDotProductAttention(attention_fn=attention_fn, **options)


def each_library(*named):
    """The named parameters of a test, once for nnx and once for linen; the library comes first."""
    return [(f"{library}_{name}", library, *rest) for library in OWN for name, *rest in named]


ONE_BATCH = (normal(3, 5, FEATURES), normal(3, 7, FEATURES, seed=3))  # queries; keys and values
TWO_BATCHES = (normal(2, 3, 5, FEATURES), normal(2, 3, 7, FEATURES, seed=3))
NO_BATCH = (normal(5, FEATURES), normal(7, FEATURES, seed=3))
