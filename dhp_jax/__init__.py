"""Constant-time attention for JAX.

``dot_product_attention`` takes the place of ``jax.nn.dot_product_attention``: what an observer can see of its
execution depends on shapes and static options only, never on the values of any array.

Names are loaded on first use (PEP 562), so that importing a part of the package, such as the static verifier, does
not import JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhp_jax import flax as flax
    from dhp_jax.attention import dot_product_attention as dot_product_attention
    from dhp_jax.cache import KVCache as KVCache
    from dhp_jax.ffi import DISABLE_EXPORT_CHECKS as DISABLE_EXPORT_CHECKS
    from dhp_jax.ffi import build_info as build_info
    from dhp_jax.primitive import CHECKPOINT_NAMES as CHECKPOINT_NAMES
    from dhp_jax.spec import AttentionSpec as AttentionSpec

__version__ = "0.1.0"

_HOME = {
    "dot_product_attention": "dhp_jax.attention",
    "AttentionSpec": "dhp_jax.spec",
    "KVCache": "dhp_jax.cache",
    "CHECKPOINT_NAMES": "dhp_jax.primitive",
    "DISABLE_EXPORT_CHECKS": "dhp_jax.ffi",
    "build_info": "dhp_jax.ffi",
}

__all__ = [
    "CHECKPOINT_NAMES",
    "DISABLE_EXPORT_CHECKS",
    "AttentionSpec",
    "KVCache",
    "build_info",
    "dot_product_attention",
]


def __getattr__(name: str) -> Any:
    if name == "flax":  # not in __all__: a star import must not hide the real flax
        return importlib.import_module("dhp_jax.flax")
    if name not in _HOME:
        raise AttributeError(f"module 'dhp_jax' has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
