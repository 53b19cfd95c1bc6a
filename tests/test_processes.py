"""Memory stays flat over many calls; threads, forks, other processes and interrupts change no bit of a result.

Run as a program, this file is the child process of its own tests: ``test_processes.py COMMAND [WORD]``.
"""

import concurrent.futures
import ctypes
import functools
import gc
import hashlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
import warnings
from typing import ClassVar, NamedTuple

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from programs import LENGTHS, arrays, assert_same_bits, attend, attend_and_differentiate, some, with_cotangent

NUM_CALLS = 4_000
NUM_WINDOWS = 3
NUM_LEAKS = 2_000  # calls of each control
TIMEOUT_S = 120

run_jitted = jax.jit(attend_and_differentiate)


def make_arguments(**sizes):
    return with_cotangent(some(arrays(**sizes), "bias", "mask", *LENGTHS))


def digest(results):
    """The bits of a pytree of arrays, as a short text."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(results))).hexdigest()


class Memory(NamedTuple):
    """What a process holds. The system sees all of it, but not what is lost out of memory that was free before."""

    resident_mib: float
    malloc_mib: float
    python_objects: int

    def grown_since(self, before):
        return Memory(*(now - then for now, then in zip(self, before, strict=True)))

    def __str__(self):
        return f"{self.resident_mib} {self.malloc_mib} {self.python_objects}"


# Seen over 10,000 calls on jax 0.9.2 and 0.12: 0.04 MiB, 0.003 MiB and 6; once, on a busy machine, 2.1 MiB resident,
# when a thread first touched its memory. What is lost in every call is lost in every window.
MOST_GROWTH = Memory(resident_mib=1.0, malloc_mib=0.1, python_objects=500)


class _MallInfo2(ctypes.Structure):
    """What glibc's mallinfo2 returns: ten sizes."""

    _fields_: ClassVar = [(f"size_{index}", ctypes.c_size_t) for index in range(10)]

    @property
    def bytes_in_use(self):
        return self.size_4 + self.size_7  # hblkhd, of their own mappings, and uordblks, of the heaps


def measure_memory():
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    read_malloc = ctypes.CDLL(None).mallinfo2
    read_malloc.restype = _MallInfo2
    return Memory(
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        read_malloc().bytes_in_use / 2**20,
        sys.getallocatedblocks(),
    )


def lose_natively(_):
    """256 bytes."""
    allocate = ctypes.CDLL(None).malloc
    allocate.argtypes, allocate.restype = [ctypes.c_size_t], ctypes.c_void_p
    ctypes.memset(allocate(256), 1, 256)


def print_growth():
    """Child process: how much it grows over many calls, and over some of which each loses a little memory."""
    arguments, lost = make_arguments(), []

    def call(times, lose):
        for _ in range(times):
            lose(jax.block_until_ready(run_jitted(arguments)))

    def growth(times, lose):
        call(times // 10, lose)
        before = measure_memory()
        call(times, lose)
        return measure_memory().grown_since(before)

    windows = [growth(NUM_CALLS, lambda _: None) for _ in range(NUM_WINDOWS)]
    print(Memory(*map(min, *windows)))
    print(growth(NUM_LEAKS, lose_natively))
    print(growth(NUM_LEAKS, lambda results: lost.append(results["lse"])))


def compute_digest():
    return digest(run_jitted(make_arguments(t=131, s=197)))


def print_digest():
    print(compute_digest())


def fork_before_use():
    """Child process: its own child, forked after the import and before the first use of JAX, and it itself compute."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, compute_digest().encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        print(pipe.read(), compute_digest(), sep="\n")


def fork_after_use():
    """Child process: forks after the use of JAX; its own child reports on the installation by a program of its own."""
    print(compute_digest())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pid = os.fork()
    if pid == 0:
        command = [sys.executable, "-P", "-m", "dhp_jax"]
        os._exit(subprocess.run(command, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S / 2).returncode)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), any("os.fork() was called" in str(x.message) for x in caught))
    print(compute_digest())


def spawn_after_use():
    """Child process: spawns a worker after the use of JAX."""
    print(compute_digest())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply_async(compute_digest).get(TIMEOUT_S))


def interrupt_a_long_call():
    """Child process: calls of some tenths of a second are interrupted as by Ctrl-C; then it computes."""
    long_call = some(arrays(b=1, t=4000, s=4000, n=2, k=2, d=64))
    attend_long = jax.jit(attend)
    jax.block_until_ready(attend_long(long_call))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for interval in (0.02, 0.05):
        signal.setitimer(signal.ITIMER_REAL, interval)
        try:
            jax.block_until_ready(attend_long(long_call))
            time.sleep(TIMEOUT_S)  # where the call was the faster
        except KeyboardInterrupt:
            print("interrupted")
    print(compute_digest())


COMMANDS = {
    function.__name__: function
    for function in (
        *(print_growth, print_digest, fork_before_use, fork_after_use, spawn_after_use, interrupt_a_long_call),
    )
}


def start_child(command, *words):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    words = [sys.executable, __file__, command, *words]
    return subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish_child(process):
    """The lines that it printed."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out.split("\n")[:-1]


def run_child(command, *words):
    return finish_child(start_child(command, *words))


@functools.cache
def measured_growth():
    return [Memory(*map(float, line.split())) for line in run_child("print_growth")]


class MemoryTest(parameterized.TestCase):
    def test_memory_is_flat_over_many_calls(self):
        flat, _, _ = measured_growth()
        assert all(growth <= most for growth, most in zip(flat, MOST_GROWTH, strict=True)), flat

    def test_the_control_a_small_native_leak_is_seen(self):
        _, native, _ = measured_growth()
        assert native.malloc_mib > 2 * MOST_GROWTH.malloc_mib

    def test_the_control_results_that_are_kept_are_seen(self):
        _, _, kept = measured_growth()
        assert kept.malloc_mib > 2 * MOST_GROWTH.malloc_mib
        assert kept.python_objects > 2 * MOST_GROWTH.python_objects


class ThreadTest(parameterized.TestCase):
    NUM_THREADS = 16

    @parameterized.named_parameters(("jitted", run_jitted), ("not_jitted", attend_and_differentiate))
    def test_calls_of_many_threads_have_the_bits_of_one(self, function):
        arguments = [make_arguments(t=33 + 32 * (seed % 3), seed=seed) for seed in range(self.NUM_THREADS)]
        with concurrent.futures.ThreadPoolExecutor(self.NUM_THREADS) as pool:
            at_once = list(pool.map(function, arguments))
        for results, own in zip(at_once, arguments, strict=True):
            assert_same_bits(results, function(own))

    def test_an_error_in_one_thread_stays_there(self):
        def call(seed):
            return attend(make_arguments_of_attend(seed), scale="big" if seed % 2 else None)

        with concurrent.futures.ThreadPoolExecutor(self.NUM_THREADS) as pool:
            calls = [pool.submit(call, seed) for seed in range(self.NUM_THREADS)]
        for seed, done in enumerate(calls):
            if seed % 2:
                with pytest.raises(TypeError, match="scale is 'big'"):
                    done.result()
            else:
                assert_same_bits(done.result(), call(seed))


def make_arguments_of_attend(seed):
    return some(arrays(seed=seed), "bias", "mask", *LENGTHS)


class ProcessTest(parameterized.TestCase):
    def test_two_processes_at_once_have_the_bits_of_this_one(self):
        children = [start_child("print_digest") for _ in range(2)]
        assert [finish_child(child) for child in children] == 2 * [[compute_digest()]]

    def test_the_control_other_values_have_other_digests(self):
        arguments = make_arguments(t=131, s=197)
        changed = arguments | {"query": arguments["query"].at[0, 0, 0, 0].add(1e-3)}
        assert digest(run_jitted(changed)) != digest(run_jitted(arguments)) == compute_digest()

    def test_a_process_forked_before_the_first_use_computes(self):
        assert run_child("fork_before_use") == 2 * [compute_digest()]

    def test_a_spawned_worker_computes(self):
        assert run_child("spawn_after_use") == 2 * [compute_digest()]

    def test_a_process_forked_after_use_runs_the_report_and_does_not_hang(self):
        """JAX warns against such a fork; compiling in the fork itself may hang, with or without dhp_jax."""
        before, status, after = run_child("fork_after_use")
        assert status == "0 True"
        assert before == after == compute_digest()

    def test_a_process_is_usable_after_an_interrupted_call(self):
        assert run_child("interrupt_a_long_call") == ["interrupted", "interrupted", compute_digest()]


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        COMMANDS[sys.argv[1]](*sys.argv[2:])
    else:
        absltest.main()
