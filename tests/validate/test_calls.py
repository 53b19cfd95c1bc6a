"""Together the calls of the gates run every kernel: what ran is noted where launchers start it, under the emulator."""

import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile

import emulation
from absl.testing import parameterized
from nvcc import ROOT

from dhp_jax.validate.calls import DTYPES, calls, forward_calls
from dhp_jax.validate.child import python

_MULTIPROCESSORS = ("78", "132")  # of a small Hopper GPU, of a large one

_PROGRAM = """
import sys
from dhp_jax.validate.calls import calls, forward_calls

for call in [*calls(sys.argv[1]), *forward_calls(sys.argv[1])]:
    call.program()(call.arrays("random"))
"""


def _launched(dtype, **gpu):
    """Mangled names of the kernels that the calls of a dtype launch on an emulated GPU."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "launches")
        environment = {**os.environ, **gpu, "LD_PRELOAD": str(emulation.library()), emulation.LAUNCHES: str(file)}
        subprocess.run([*python(), "-c", _PROGRAM, dtype], env=environment, check=True)
        return set(file.read_text(encoding="utf-8").splitlines())


def _released(architecture, dtype):
    """Those of the report, for one dtype."""
    report = json.loads((ROOT / "docs" / "verified_kernels.json").read_text(encoding="utf-8"))
    names = {kernel["symbol"] for kernel in report if kernel["architecture"] == architecture}
    return {name for name in names if f"DTypeE{DTYPES.index(dtype)}E" in name}


class EveryKernelTest(parameterized.TestCase):
    @parameterized.product(dtype=DTYPES, multiprocessors=_MULTIPROCESSORS)
    def test_on_compute_capability_9(self, dtype, multiprocessors):
        gpu = {emulation.CAPABILITY: "9", emulation.MULTIPROCESSORS: multiprocessors}
        assert _launched(dtype, **gpu) == _released("sm_90a", dtype)

    @parameterized.parameters(*DTYPES)
    def test_on_compute_capability_8(self, dtype):
        assert _launched(dtype, **{emulation.CAPABILITY: "8"}) == _released("sm_80", dtype)


class ArraysTest(parameterized.TestCase):
    @parameterized.parameters(*DTYPES)
    def test_every_sort_of_secrets_can_be_made_of_every_call(self, dtype):
        # Of few channels, with which all else is the same.
        for call in {dataclasses.replace(call, channels=8) for call in [*calls(dtype), *forward_calls(dtype)]}:
            for secret in (*call.secrets(), *call.mixtures()):
                found = {name: array.shape for name, array in call.arrays(secret).items()}
                assert found == call.shapes, (call.name, secret)

    @parameterized.parameters(*DTYPES)
    def test_names_are_unique(self, dtype):
        names = [call.name for call in [*calls(dtype), *forward_calls(dtype)]]
        assert len(set(names)) == len(names)
