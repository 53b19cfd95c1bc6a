"""The conformance tests once more, on the GPU: ``pytest -m gpu``.

They say nothing about devices. Under ``-m gpu`` conftest.py leaves JAX its default one, the GPU, and tolerances
follow it (cases.py).
"""

import pytest
from test_backward import BackwardTest, GradientFormTest
from test_decode import DecodeTest
from test_differences import (
    EmptyArrayTest,
    EmptyRowTest,
    HugeScoreTest,
    LengthTest,
    LogSumExpTest,
    NotFiniteTest,
    PastLengthTest,
    SubnormalTest,
)
from test_extremes import FewKeysTest, LargeScoreTest
from test_forward import ArgumentFormTest, ForwardTest
from test_masks import BroadcastTest, ContentTest, OtherWayTest
from test_memory import MemoryTest
from test_properties import PropertyTest
from test_tile_edges import HopperTileEdgeTest, SmallTileEdgeTest, TileEdgeTest

pytestmark = pytest.mark.gpu

__all__ = [
    "ArgumentFormTest",
    "BackwardTest",
    "BroadcastTest",
    "ContentTest",
    "DecodeTest",
    "EmptyArrayTest",
    "EmptyRowTest",
    "FewKeysTest",
    "ForwardTest",
    "GradientFormTest",
    "HopperTileEdgeTest",
    "HugeScoreTest",
    "LargeScoreTest",
    "LengthTest",
    "LogSumExpTest",
    "MemoryTest",
    "NotFiniteTest",
    "OtherWayTest",
    "PastLengthTest",
    "PropertyTest",
    "SmallTileEdgeTest",
    "SubnormalTest",
    "TileEdgeTest",
]
