"""The bits of a result depend on its own arguments: not on threads, on the batch around it, or on the run.

Run as a program, this file is the child process of its own tests: ``test_invariance.py COMMAND [FILE]``.
"""

import concurrent.futures
import contextlib
import ctypes
import ctypes.util
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from programs import (
    LENGTHS,
    arrays,
    assert_same_bits,
    attend,
    attend_and_differentiate,
    some,
    with_cotangent,
)

# Several blocks of the CPU kernels (128 rows by 64 keys) along every axis, and a remainder; and few rows against many
# keys, which they split.
SIZES = {"b": 5, "t": 131, "s": 197, "n": 6, "k": 2, "d": 24}
FEW_ROWS = {"t": 2, "s": 1100}
DTYPES = ("float32", "bfloat16", "float16")
NUM_CALLS = 64
TIMEOUT_S = 240

run_single = jax.jit(attend_and_differentiate)


def make_arguments(*names, **sizes):
    return with_cotangent(some(arrays(**SIZES | sizes), *names))


def save_results(path):
    """Child process: results in every dtype, and the number of threads that XLA's pool has."""
    results = {
        f"{dtype}_{sizes.get('t', 'many')}_{name}": np.asarray(x).view(np.uint8)
        for dtype in DTYPES
        for sizes in ({}, FEW_ROWS)
        for name, x in run_single(make_arguments("bias", "mask", *LENGTHS, dtype=dtype, **sizes)).items()
    }
    names = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    np.savez(path, num_threads=names.count("tf_XLAEigen"), **results)


def run_many_calls():
    """Child process: independent attention calls in one program, more than there are threads."""
    arguments = [make_arguments("bias", b=2, seed=seed) for seed in range(NUM_CALLS)]
    results = jax.jit(lambda arguments: [attend_and_differentiate(x) for x in arguments])(arguments)
    for result, own in zip(results, arguments, strict=True):
        assert_same_bits(result, run_single(own))


def run_meeting_calls():
    """Child process: independent calls in one program, the first of which waits until another is under way."""
    is_first, another_came = threading.Semaphore(1), threading.Event()

    def meet(x):
        if not is_first.acquire(blocking=False):
            another_came.set()
        elif not another_came.wait(timeout=TIMEOUT_S / 4):
            raise TimeoutError("no other call started")
        return np.asarray(x)

    shape = jax.ShapeDtypeStruct((4096,), "float32")
    program = jax.jit(lambda xs: [jax.pure_callback(meet, shape, x) for x in xs])
    jax.block_until_ready(program([jnp.full(4096, i, "float32") for i in range(NUM_CALLS)]))


COMMANDS = {function.__name__: function for function in (save_results, run_many_calls, run_meeting_calls)}


def run_child(command, *arguments, num_threads):
    """Runs a command of this file in a process whose XLA thread pool has `num_threads` threads."""
    # XLA takes NPROC for the number of processors, but makes at least one thread for each device.
    environment = os.environ | {"NPROC": str(num_threads), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, __file__, command, *arguments], env=environment, check=True, timeout=TIMEOUT_S)


class ThreadTest(parameterized.TestCase):
    def results(self, num_threads):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "results.npz")
            run_child("save_results", path, num_threads=num_threads)
            with np.load(path) as file:
                return dict(file)

    def test_bits_do_not_depend_on_the_number_of_threads(self):
        of_one, *of_more = (self.results(num_threads) for num_threads in (1, 2, 5))
        for num_threads, results in zip((2, 5), of_more, strict=True):
            assert (of_one["num_threads"], results.pop("num_threads")) == (1, num_threads)
            assert_same_bits(results, {name: of_one[name] for name in results})

    def test_many_calls_at_once_on_two_threads_finish_and_are_right(self):
        run_child("run_many_calls", num_threads=2)

    def test_the_control_calls_of_such_a_program_run_at_once(self):
        run_child("run_meeting_calls", num_threads=2)

    def test_calls_from_several_python_threads_are_right(self):
        arguments = [make_arguments("bias", "mask", seed=seed) for seed in range(4)]
        expected = [run_single(x) for x in arguments]

        def call_repeatedly(index):
            return [jax.block_until_ready(run_single(arguments[index])) for _ in range(5)]

        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
            for results, own in zip(pool.map(call_repeatedly, range(4)), expected, strict=True):
                for result in results:
                    assert_same_bits(result, own)


class RepetitionTest(parameterized.TestCase):
    @parameterized.parameters(*DTYPES)
    def test_repeated_runs_give_the_same_bits(self, dtype):
        arguments = make_arguments("bias", "mask", *LENGTHS, dtype=dtype)
        expected = run_single(arguments)
        for _ in range(5):
            assert_same_bits(run_single(arguments), expected)


class NeighbourTest(parameterized.TestCase):
    """What else is computed in the same call: the batch around an element, the heads around a head."""

    CHANGED_SIZES = {}  # noqa: RUF012

    # Arguments and results of which an element of the batch has a part of its own, and their batch axis.
    OWN = ("query", "key", "value", "mask", "cotangent", *LENGTHS)
    GROUP = SIZES["n"] // SIZES["k"]  # query heads that share a key/value head

    def setUp(self):
        super().setUp()
        self.arguments = make_arguments("bias", "mask", *LENGTHS, **self.CHANGED_SIZES)
        self.results = self.run_without_bias_gradient(self.arguments)

    def run_without_bias_gradient(self, arguments, **options):
        """bias is shared by the batch, so its gradient is a sum over it."""
        results = jax.jit(lambda arguments: attend_and_differentiate(arguments, **options))(arguments)
        return {name: np.asarray(x) for name, x in results.items() if name != "d_bias"}

    def of_batch(self, arguments, index):
        return {name: x[index] if name in self.OWN else x for name, x in arguments.items()}

    def of_heads(self, tree, key_heads):
        """The part of arguments or results that belongs to some key/value heads."""
        heads = [head * self.GROUP + i for head in key_heads for i in range(self.GROUP)]
        axes = {"bias": 1} | {name: 2 for name in ("query", "cotangent", "out", "lse", "d_query")}
        key_axes = {name: 2 for name in ("key", "value", "d_key", "d_value")}

        def part(name, x):
            if name in axes:
                return np.take(x, heads, axes[name])
            return np.take(x, key_heads, key_axes[name]) if name in key_axes else x

        return {name: part(name, x) for name, x in tree.items()}

    @parameterized.parameters(0, 3)
    def test_an_element_alone_and_in_a_batch(self, index):
        alone = self.run_without_bias_gradient(self.of_batch(self.arguments, slice(index, index + 1)))
        assert_same_bits(alone, {name: x[index : index + 1] for name, x in self.results.items()})

    def test_the_order_of_the_batch(self):
        order = np.array([3, 0, 4, 2, 1])
        permuted = self.run_without_bias_gradient(self.of_batch(self.arguments, order))
        assert_same_bits(permuted, {name: x[order] for name, x in self.results.items()})

    @parameterized.parameters(np.nan, np.inf, 1e30)
    def test_the_values_of_other_elements(self, value):
        others = [0, 1, 3, 4]
        spoiled = {name: self.arguments[name].at[np.array(others)].set(value) for name in ("query", "key", "value")}
        results = self.run_without_bias_gradient(self.arguments | spoiled)
        assert_same_bits({n: x[2] for n, x in results.items()}, {n: x[2] for n, x in self.results.items()})

    def test_a_bias_of_its_own_has_the_same_gradient_alone_and_in_a_batch(self):
        arguments = dict(self.arguments)
        arguments["bias"] = jnp.concatenate([arguments["bias"] * i for i in range(1, 6)])
        together = run_single(arguments)["d_bias"]
        alone = run_single({name: x[2:3] for name, x in arguments.items()})["d_bias"]
        assert_same_bits(alone, together[2:3])

    @parameterized.parameters(0, 1)
    def test_a_head_alone_and_among_others(self, head):
        alone = self.run_without_bias_gradient(self.of_heads(self.arguments, [head]))
        assert_same_bits(alone, self.of_heads(self.results, [head]))

    def test_the_order_of_heads(self):
        permuted = self.run_without_bias_gradient(self.of_heads(self.arguments, [1, 0]))
        assert_same_bits(permuted, self.of_heads(self.results, [1, 0]))

    def test_the_values_of_other_heads(self):
        spoiled = {name: self.arguments[name].at[:, :, 1].set(np.nan) for name in ("key", "value")}
        results = self.run_without_bias_gradient(self.arguments | spoiled)
        assert_same_bits(self.of_heads(results, [0]), self.of_heads(self.results, [0]))

    def test_a_causal_element_alone_and_in_a_batch(self):
        options = {"is_causal": True, "local_window_size": (90, 7)}
        together = self.run_without_bias_gradient(self.arguments, **options)
        alone = self.run_without_bias_gradient(self.of_batch(self.arguments, slice(4, 5)), **options)
        assert_same_bits(alone, {name: x[4:5] for name, x in together.items()})

    def test_the_control_other_values_change_other_elements(self):
        spoiled = self.run_without_bias_gradient(self.arguments | {"value": self.arguments["value"].at[1].add(1.0)})
        changed = [i for i in range(SIZES["b"]) if spoiled["out"][i].tobytes() != self.results["out"][i].tobytes()]
        assert changed == [1]


class NeighbourOfFewRowsTest(NeighbourTest):
    """The same of a token or two against a cache."""

    CHANGED_SIZES = FEW_ROWS


FLUSH = 1 << 15 | 1 << 6  # in MXCSR: flush results to zero, take operands as zero


def flushes_subnormals():
    smallest_normal = np.full(7, np.finfo(np.float32).tiny)
    return bool(np.all(smallest_normal * np.float32(0.5) == 0))


@contextlib.contextmanager
def flushing_subnormals():
    """Sets flush-to-zero on this thread, by way of the C library's floating-point environment."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    words = (ctypes.c_uint32 * 8)()  # x86-64 glibc: seven words of x87 state, then MXCSR
    libm.fegetenv(words)
    saved = words[7]
    words[7] = saved | FLUSH
    libm.fesetenv(words)
    try:
        yield
    finally:
        words[7] = saved
        libm.fesetenv(words)


@absltest.skipUnless(
    platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc", "reads the x86-64 environment of glibc"
)
class CallerStateTest(parameterized.TestCase):
    """Kernels flush subnormal numbers to zero; the thread that called them gets its own mode back."""

    def call(self):
        arguments = make_arguments("bias")
        jax.block_until_ready(attend(some(arguments, "bias")))
        jax.block_until_ready(run_single(arguments))

    def test_a_thread_that_keeps_subnormals_still_does(self):
        self.call()
        assert not flushes_subnormals()

    def test_a_thread_that_flushes_subnormals_still_does(self):
        with flushing_subnormals():
            self.call()
            assert flushes_subnormals()

    def test_another_python_thread_keeps_its_mode(self):
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
            pool.submit(self.call).result()
            assert not pool.submit(flushes_subnormals).result()

    def test_the_control_flushing_is_seen(self):
        assert not flushes_subnormals()
        with flushing_subnormals():
            assert flushes_subnormals()
        assert not flushes_subnormals()


if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
