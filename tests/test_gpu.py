"""The conformance tests once more, on the GPU: ``pytest -m gpu``.

They say nothing about devices. Under ``-m gpu`` conftest.py leaves JAX its default one, the GPU, and tolerances
follow it (cases.py).
"""

import pytest
from test_backward import BackwardTest, GradientFormTest
from test_differences import (
    EmptyArrayTest,
    EmptyRowTest,
    HugeScoreTest,
    LengthTest,
    LogSumExpTest,
    MemoryTest,
    NotFiniteTest,
    PastLengthTest,
    SubnormalTest,
)
from test_forward import ArgumentFormTest, ForwardTest
from test_properties import PropertyTest
from test_tile_edges import HopperTileEdgeTest, SmallTileEdgeTest, TileEdgeTest

pytestmark = pytest.mark.gpu

__all__ = [
    "ArgumentFormTest",
    "BackwardTest",
    "EmptyArrayTest",
    "EmptyRowTest",
    "ForwardTest",
    "GradientFormTest",
    "HopperTileEdgeTest",
    "HugeScoreTest",
    "LengthTest",
    "LogSumExpTest",
    "MemoryTest",
    "NotFiniteTest",
    "PastLengthTest",
    "PropertyTest",
    "SmallTileEdgeTest",
    "SubnormalTest",
    "TileEdgeTest",
]
