"""FlashAttention-3, built from the folder hopper/ of its repository."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from shapes import Shape
from timer import Build

from peers import chain


def build(shape: Shape) -> Build:
    """flash_attn_interface.flash_attn_func."""
    flash = importlib.import_module("flash_attn_interface")

    def attention(query: Any, key: Any, value: Any) -> Any:
        out = flash.flash_attn_func(query, key, value, causal=shape.is_causal)
        return out[0] if isinstance(out, tuple) else out

    return functools.partial(chain.of_torch, shape, attention)
