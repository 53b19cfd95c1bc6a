"""FlashAttention-3, built from the folder hopper/ of its repository."""

from __future__ import annotations

import importlib

from shapes import Shape
from timer import Build

from peers import chain


def build(shape: Shape) -> Build:
    """flash_attn_interface.flash_attn_func."""
    return chain.of_flash_attn(shape, importlib.import_module("flash_attn_interface").flash_attn_func)
