"""FlashAttention-4 (flash-attn-4 on PyPI), written in CuTe DSL."""

from __future__ import annotations

import importlib

from shapes import Shape
from timer import Build

from peers import chain


def build(shape: Shape) -> Build:
    """flash_attn.cute.flash_attn_func."""
    return chain.of_flash_attn(shape, importlib.import_module("flash_attn.cute").flash_attn_func)
