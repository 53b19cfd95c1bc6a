"""What only a GPU can show: equal bits over many runs, in two processes, on two devices, inside a captured graph."""

import hashlib
import os
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from programs import LENGTHS, arrays, attend_and_differentiate, some, with_cotangent

from dhp_jax.validate.child import python

pytestmark = pytest.mark.gpu

_REPEATS = 1000
_DTYPES = ("float32", "bfloat16", "float16")
_SIZES = {"b": 2, "t": 200, "s": 170, "n": 8, "k": 2, "d": 64}


def _arguments(dtype, *optional):
    return with_cotangent(some(arrays(dtype=dtype, **_SIZES), *optional))


def _digest(results):
    """The bits of a pytree of arrays, as a short text."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(results))).hexdigest()


def _child(program, **environment):
    """Starts a Python process that can import the test modules."""
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*python(), "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


class RepeatTest(parameterized.TestCase):
    @parameterized.product(dtype=_DTYPES, optional=[(), ("bias", "mask", *LENGTHS)])
    def test_every_run_has_the_same_bits(self, dtype, optional):
        arguments = _arguments(dtype, *optional)
        run = jax.jit(attend_and_differentiate)
        first = run(arguments)
        for _ in range(_REPEATS - 1):
            again = run(arguments)
            same = jax.tree.map(lambda a, b: jnp.array_equal(a, b, equal_nan=True), first, again)
            assert all(jax.tree.leaves(same))

    @parameterized.parameters(*_DTYPES)
    def test_memory_that_held_nan_changes_nothing(self, dtype):
        arguments = _arguments(dtype, "bias")
        run = jax.jit(attend_and_differentiate)
        expected = _digest(run(arguments))
        for _ in range(3):
            poison = [jnp.full((256, 1024, 1024), jnp.nan) for _ in range(4)]
            jax.block_until_ready(poison)
            del poison
            assert _digest(run(arguments)) == expected


class ProcessTest(parameterized.TestCase):
    def test_two_processes_at_once_have_the_bits_of_this_one(self):
        program = (
            "import jax, test_gpu_hardware as t; from programs import attend_and_differentiate as f\n"
            "run = jax.jit(f)\n"
            "for d in t._DTYPES: print({t._digest(run(t._arguments(d, 'bias'))) for _ in range(50)})"
        )
        expected = [str({_digest(jax.jit(attend_and_differentiate)(_arguments(d, "bias")))}) for d in _DTYPES]
        children = [_child(program) for _ in range(2)]
        for child in children:
            said, errors = child.communicate(timeout=300)
            assert said.splitlines() == expected, errors


class DeviceTest(parameterized.TestCase):
    @parameterized.product(axis=[0, 2], dtype=["float32", "bfloat16"])
    def test_two_devices_have_the_bits_of_one(self, axis, dtype):
        if jax.device_count() < 2:
            self.skipTest("one device")
        arguments = _arguments(dtype)
        expected = jax.jit(attend_and_differentiate)(arguments)
        mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
        spec = jax.sharding.PartitionSpec(*(["x" if i == axis else None for i in range(4)]))
        sharded = jax.device_put(arguments, jax.sharding.NamedSharding(mesh, spec))
        results = jax.jit(attend_and_differentiate)(sharded)
        assert results.keys() == expected.keys()
        for name in results:
            np.testing.assert_array_equal(np.asarray(results[name]), np.asarray(expected[name]), name)


_CHAIN = """
import jax, sys, test_gpu_hardware as t
from programs import attend_and_differentiate
@jax.jit
def chain(arguments):
    for _ in range(8):
        arguments = {**arguments, "query": attend_and_differentiate(arguments)["out"]}
    return attend_and_differentiate(arguments)
print([t._digest(chain(t._arguments(d))) for d in t._DTYPES])
"""


class CommandBufferTest(parameterized.TestCase):
    """XLA records our calls into CUDA graphs, and what a graph computes is what single launches compute."""

    def _run(self, flags):
        with tempfile.TemporaryDirectory() as folder:
            child = _child(_CHAIN, XLA_FLAGS=f"{flags} --xla_dump_to={folder}")
            said, errors = child.communicate(timeout=300)
            assert child.returncode == 0, errors
            dumps = "".join(path.read_text(errors="replace") for path in pathlib.Path(folder).glob("*thunk*"))
        return said, dumps

    def test_chain_is_captured_and_has_the_bits_of_single_launches(self):
        captured, dumps = self._run("")
        single, single_dumps = self._run("--xla_gpu_enable_command_buffer=")
        assert captured == single
        assert "kCommandBuffer" in dumps
        assert "kCommandBuffer" not in single_dumps
        assert "kCustomCall" in single_dumps
