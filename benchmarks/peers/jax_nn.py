"""jax.nn.dot_product_attention, by cuDNN and by XLA."""

from __future__ import annotations

import functools
from typing import Any

from shapes import Shape
from timer import Build

from peers import chain

_MOST_SCORES = 1 << 31  # XLA keeps all of them


def cudnn(shape: Shape) -> Build:
    """implementation="cudnn"."""
    import jax

    return functools.partial(
        chain.of_jax, shape, functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    )


def xla(shape: Shape) -> Build:
    """implementation="xla"; float32 at the precision "highest", which is that of float32."""
    import jax

    if shape.B * shape.N * shape.T * shape.S > _MOST_SCORES:
        raise ValueError("it keeps all scores in memory, which are too many here")

    def attention(*arrays: Any, **options: Any) -> Any:
        with jax.default_matmul_precision("highest" if shape.dtype == "float32" else "default"):
            return jax.nn.dot_product_attention(*arrays, **options, implementation="xla")

    return functools.partial(chain.of_jax, shape, attention)
