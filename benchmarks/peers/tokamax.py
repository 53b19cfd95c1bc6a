"""tokamax.dot_product_attention by its Mosaic kernel, which its own heuristics configure."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from shapes import Shape
from timer import Build

from peers import chain


def build(shape: Shape) -> Build:
    """implementation="mosaic"."""
    tokamax = importlib.import_module("tokamax")

    def attention(query: Any, key: Any, value: Any, is_causal: bool) -> Any:
        return tokamax.dot_product_attention(query, key, value, is_causal=is_causal, implementation="mosaic")

    return functools.partial(chain.of_jax, shape, attention)
