"""The attention kernel for Hopper that JAX ships as an example of Pallas on Mosaic GPU; forward, 16 bits."""

from __future__ import annotations

import functools
from typing import Any

from shapes import Shape
from timer import Build

from peers import chain


def build(shape: Shape) -> Build:
    """jax.experimental.pallas.ops.gpu.attention_mgpu."""
    from jax.experimental.pallas.ops.gpu import attention_mgpu as mosaic

    if shape.gradient or shape.dtype == "float32":
        raise ValueError("it is timed forward, in 16 bits")
    config = mosaic.TuningConfig(
        block_q=64, block_kv=64 if shape.D == 256 else 128, max_concurrent_steps=2, causal=shape.is_causal
    )

    def attention(query: Any, key: Any, value: Any, is_causal: bool) -> Any:
        # The kernel multiplies by no scale; as a factor on the query it costs nothing that counts.
        del is_causal  # in the config
        return mosaic.attention(query, key, value, config)

    return functools.partial(chain.of_jax, shape, attention)
