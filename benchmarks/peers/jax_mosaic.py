"""The attention kernel for Hopper that JAX ships as an example of Pallas on Mosaic GPU; forward, float16.

It says that it takes bfloat16 too, but its shared memory is declared float16 (jax 0.9.2 to 0.12): where others run
bfloat16 it is timed in float16, and so it is called in the tables.
"""

from __future__ import annotations

import dataclasses
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

    return functools.partial(chain.of_jax, dataclasses.replace(shape, dtype="float16"), attention)
