"""Where it is imported and how JAX is set up changes no bit of a result; what cannot work says why, and breaks no more.

Run as a program, this file is the child process of its own tests: ``test_surroundings.py COMMAND``.
"""

import contextlib
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from programs import LENGTHS, arrays, assert_same_bits, attend, attend_and_differentiate, some, with_cotangent

TIMEOUT_S = 120
# No folder, no file in it can be made, not even by root.
UNWRITABLE = {"HOME": "/dev/null", "TMPDIR": "/dev/null", "XDG_CACHE_HOME": "/proc", "XDG_CONFIG_HOME": "/proc"}

run_jitted = jax.jit(attend_and_differentiate)


def make_arguments():
    return with_cotangent(some(arrays(t=33, s=65), "bias", "mask", *LENGTHS))


def print_bits():
    """Child process: the bits of the results."""
    print(*[np.asarray(x).tobytes().hex() for x in jax.tree.leaves(run_jitted(make_arguments()))], sep="\n")


def print_writes():
    """Child process: what is opened to write, or made, from the import of our modules to the end of a first call."""
    written = []

    def watch(event, words):
        may_write = event == "open" and isinstance(words[2], int) and words[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if may_write or event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink"):
            written.append(str(words[0]))

    sys.addaudithook(watch)
    run_jitted(make_arguments())
    with open(os.devnull, "w"):  # the control
        print(*written, sep="\n")


def print_missing_platform():
    """Child process: the errors of a plain operation of JAX and of ours, on a platform that JAX cannot start."""
    query = np.ones((1, 2, 1, 8), np.float32)
    for run in (lambda: jnp.zeros(3), lambda: attend({"query": query, "key": query, "value": query})):
        try:
            run()
        except Exception as error:
            print(type(error).__name__, str(error).replace("\n", " "))


def print_other_jaxlib():
    """Child process: what happens where the installed jaxlib is older than the one built on."""
    import jax.ffi

    import dhp_jax

    with tempfile.TemporaryDirectory() as folder:
        header = pathlib.Path(folder, "xla", "ffi", "api", "c_api.h")
        header.parent.mkdir(parents=True)
        header.write_text("#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 1\n", encoding="utf-8")
        with mock.patch.object(jax.ffi, "include_dir", return_value=folder):
            for _ in range(2):
                try:
                    dhp_jax.dot_product_attention  # noqa: B018
                except ImportError as error:
                    print(error)
            print("JAX works", jnp.arange(4).sum())
            try:
                runpy.run_module("dhp_jax", run_name="__main__")
            except SystemExit as stop:
                print("exit status", stop.code)


COMMANDS = {
    function.__name__: function for function in (print_bits, print_writes, print_missing_platform, print_other_jaxlib)
}


# What `python FILE COMMAND` does, where Python is told not to look for modules beside the program.
_FOLDER = str(pathlib.Path(__file__).parent)
_RUN = f"import runpy, sys; sys.path.insert(0, {_FOLDER!r}); runpy.run_path({__file__!r}, run_name='__main__')"


def run_child(command, *flags, folder=None, **environment):
    """What the command printed, in lines, in a Python that was started with flags, in a folder."""
    words = [sys.executable, *flags, "-c", _RUN, command]
    # PYTHONSAFEPATH: the package that is installed, not the one in the folder.
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONSAFEPATH": "1"} | environment
    options = {"capture_output": True, "text": True, "check": False, "timeout": TIMEOUT_S}
    process = subprocess.run(words, env=environment, cwd=folder, **options)
    assert process.returncode == 0, process.stderr
    return process.stdout.split("\n")[:-1]


def bits():
    """What print_bits prints."""
    return [np.asarray(x).tobytes().hex() for x in jax.tree.leaves(run_jitted(make_arguments()))]


class PythonTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("isolated_and_optimised", "-I", "-OO"),
        ("every_warning_an_error", "-W", "error", "-X", "dev", "-bb"),
    )
    def test_flags_of_python_change_nothing(self, *flags):
        assert run_child("print_bits", *flags) == bits()

    def test_nothing_need_be_writable(self):
        assert run_child("print_bits", folder="/proc", PYTHONSAFEPATH="1", **UNWRITABLE) == bits()

    def test_nothing_is_written(self):
        assert run_child("print_writes", "-B") == [os.devnull]


class InstallationTest(parameterized.TestCase):
    def test_a_platform_that_jax_cannot_start_gives_the_error_of_jax(self):
        errors = run_child("print_missing_platform", JAX_PLATFORMS="cuda")
        if not errors:
            pytest.skip("JAX starts on CUDA here")
        of_jax, of_ours = errors
        assert of_ours == of_jax

    def test_an_older_jaxlib_is_refused_each_time_and_jax_still_works(self):
        first, second, sum_of_jax, *report, status = run_child("print_other_jaxlib")
        assert first == second
        assert "the installed jaxlib has 0.1; it must have the same major and at least the same minor" in first
        assert sum_of_jax == "JAX works 6"
        assert "native module: missing. dhp_jax was built on XLA FFI" in report[-1]
        assert status == "exit status 1"


SETTINGS = {
    "jax_debug_nans": True,  # rows without a key are no NaN
    "jax_disable_jit": True,
    "jax_enable_checks": True,
    "jax_check_tracer_leaks": True,
    "jax_transfer_guard": "disallow",
    "jax_default_matmul_precision": "bfloat16",
    "jax_numpy_dtype_promotion": "strict",
    "jax_enable_x64": True,
}


@contextlib.contextmanager
def setting(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


class SettingTest(parameterized.TestCase):
    @parameterized.parameters(*SETTINGS.items())
    def test_settings_of_jax_change_nothing(self, name, value):
        arguments = jax.device_put(make_arguments())
        with setting(name, value):
            # A function of its own: JAX keeps what it has traced by the function, not by every setting.
            results = jax.block_until_ready(jax.jit(lambda x: attend_and_differentiate(x))(arguments))
        assert_same_bits(results, run_jitted(arguments))

    def test_the_control_a_setting_acts(self):
        with setting("jax_transfer_guard", "disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
            run_jitted(jax.tree.map(np.asarray, make_arguments()))

    def test_results_computed_while_compiling_are_the_same(self):
        arguments = make_arguments()

        @jax.jit
        def constants():
            with jax.ensure_compile_time_eval():
                return jax.tree.map(jnp.asarray, attend_and_differentiate(arguments))

        assert_same_bits(constants(), run_jitted(arguments))

    def test_only_a_row_without_a_key_is_infinite(self):
        arguments = some(arrays(), "bias")
        with setting("jax_debug_infs", True):
            attend(arguments, return_residual=True)
            with pytest.raises(FloatingPointError, match="attention_fwd"):
                attend(arguments | {"mask": jnp.zeros((1, 1), bool)}, return_residual=True)


if __name__ == "__main__":
    COMMANDS[sys.argv[1]]() if len(sys.argv) > 1 and sys.argv[1] in COMMANDS else absltest.main()
