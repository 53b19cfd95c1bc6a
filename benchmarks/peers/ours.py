"""dhp_jax.dot_product_attention."""

from __future__ import annotations

import functools

from shapes import Shape
from timer import Build

from peers import chain


def build(shape: Shape) -> Build:
    """Ours."""
    import dhp_jax

    return functools.partial(chain.of_jax, shape, dhp_jax.dot_product_attention)
