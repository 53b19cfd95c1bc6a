"""A call goes down through the rooms: no import and no include points up, and each room knows only what it must."""

import ast
import pathlib
import re
import subprocess
import sys

import nvcc
import pytest
from absl.testing import parameterized

import dhp_jax

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE, CUDA = ROOT / "dhp_jax", ROOT / "cuda"

# Room -> the rooms of dhp_jax that it may import. A file is a room; so is a folder, whatever lies in it.
PYTHON_ROOMS = {
    "__main__": {"__init__", "ffi"},
    "__init__": {"attention", "cache", "ffi", "flax", "primitive", "spec"},
    "cache": {"attention", "spec"},
    "flax": {"attention"},
    "attention": {"partition", "primitive", "spec"},
    "primitive": {"ffi", "partition", "spec"},
    "partition": set(),
    "ffi": {"_native"},
    "spec": set(),
    "reference": set(),
    "verify": {"verify"},
    "validate": {"__init__", "ffi", "reference", "validate", "verify"},
}
WITHOUT_JAX = ("__init__", "reference", "verify")

# Room of cuda/ -> its floor. A file may include files of its own room and of lower floors.
FLOORS = {"ffi": 4, "proof": 4, "controls": 4, "launch": 3, "host": 3, "kernels": 2, "device": 1, "params.h": 0}
ROOMS_WITH_CUDA = ("controls", "launch", "kernels", "device")

C_HEADERS = ("dlfcn.h", "immintrin.h", "sched.h", "stdint.h", "xmmintrin.h")

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_CUDA_SYNTAX = re.compile(
    r"<<<|\b__(?:global|device|host|shared|constant|launch_bounds)__\b|\bcuda[A-Z]\w*|\bCU[a-z]\w*"
)


def python_files():
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def native_files():
    return sorted(path for path in CUDA.rglob("*") if path.suffix in (".h", ".cc", ".cu", ".cuh"))


def python_room(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def native_room(path):
    return path.relative_to(CUDA).parts[0]


def named_files(files, root):
    return [(re.sub(r"\W", "_", str(path.relative_to(root))), path) for path in files]


def imported_modules(source):
    """The dotted names that a module imports, anywhere in it, or names in a string to import by."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"dhp_jax(\.\w+)+", str(node.value)):
            names.append(node.value)
    return names


def own_rooms(source):
    """The rooms of dhp_jax that a module imports."""
    inside = [name.split(".")[1:] for name in imported_modules(source) if name.split(".")[0] == "dhp_jax"]
    known = {*PYTHON_ROOMS, "_native"}
    return {parts[0] if parts and parts[0] in known else "__init__" for parts in inside}


def wrong_imports(room, source):
    return own_rooms(source) - PYTHON_ROOMS[room]


def imports_jax(source):
    return any(name.split(".")[0] in ("jax", "jaxlib") for name in imported_modules(source))


def private_uses(source):
    """Where a module reaches into jax._src, by import or by attribute."""
    attributes = [node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return [name for name in imported_modules(source) + attributes if "_src" in name.split(".")]


def symbol_names(source):
    """Strings of a module in which the name of a custom-call target occurs."""
    strings = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [text for text in strings if "dhp_attention" in text and text not in dhp_jax.CHECKPOINT_NAMES]


def wrong_includes(room, source):
    """The includes of a file in `room` that it may not have."""

    def allowed(bracket, name):
        target = name.split("/")[0]
        if target in FLOORS:
            return bracket == '"' and (target == room or FLOORS[target] < FLOORS[room])
        if target in ("xla", "pybind11"):
            return room == "ffi"
        if re.match(r"cuda|mma\.h|cooperative_groups", name):
            return room in ROOMS_WITH_CUDA
        return bracket == "<" and "/" not in name and ("." not in name or name in C_HEADERS)

    return [name for bracket, name in _INCLUDE.findall(source) if not allowed(bracket, name)]


def cuda_syntax(source):
    return _CUDA_SYNTAX.findall(_COMMENT.sub("", source))


def imports_jax_at_run_time(statement):
    program = f"{statement}\nimport sys\nprint('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.strip() == "True"


class PythonTest(parameterized.TestCase):
    @parameterized.named_parameters(named_files(python_files(), PACKAGE))
    def test_imports_point_down(self, path):
        assert wrong_imports(python_room(path), path.read_text()) == set()

    @parameterized.named_parameters(named_files(python_files(), PACKAGE))
    def test_nothing_private_of_jax_is_used(self, path):
        assert private_uses(path.read_text()) == []

    @parameterized.named_parameters(named_files([f for f in python_files() if python_room(f) != "ffi"], PACKAGE))
    def test_only_ffi_knows_a_symbol_name(self, path):
        assert symbol_names(path.read_text()) == []

    @parameterized.named_parameters(named_files([f for f in python_files() if python_room(f) in WITHOUT_JAX], PACKAGE))
    def test_rooms_without_jax_do_not_name_it(self, path):
        assert not imports_jax(path.read_text())

    @parameterized.parameters("import dhp_jax", "import dhp_jax.reference", "from dhp_jax import __version__")
    def test_importing_the_package_does_not_import_jax(self, statement):
        assert not imports_jax_at_run_time(statement)


class NativeTest(parameterized.TestCase):
    @parameterized.named_parameters(named_files(native_files(), CUDA))
    def test_includes_point_down(self, path):
        assert wrong_includes(native_room(path), path.read_text()) == []

    @parameterized.named_parameters(named_files(native_files(), CUDA))
    def test_own_includes_exist(self, path):
        own = [name for _, name in _INCLUDE.findall(path.read_text()) if name.split("/")[0] in FLOORS]
        assert [name for name in own if not (CUDA / name).is_file()] == []

    @parameterized.parameters(
        *(("launch.cu", False), ("launch_sm90.cu", True)),
        *(("launch_small_sm90.cu", True), ("launch_decode_sm90.cu", True)),
    )
    def test_what_only_compute_capability_9_0_has_is_in_its_own_unit(self, unit, is_its_own):
        included = nvcc.included(CUDA / "launch" / unit, CUDA)
        assert (CUDA / "device" / "ptx_sm90.cuh" in included) == is_its_own

    @parameterized.named_parameters(
        named_files([f for f in native_files() if native_room(f) in ("ffi", "host", "proof", "params.h")], CUDA)
    )
    def test_what_is_no_kernel_or_launcher_has_no_cuda_syntax(self, path):
        assert path.suffix in (".h", ".cc")
        assert cuda_syntax(path.read_text()) == []


class CheckerTest(parameterized.TestCase):
    """Each check above reports what it must report."""

    @parameterized.named_parameters(
        ("up", "spec", "from dhp_jax.attention import dot_product_attention", {"attention"}),
        ("up_inside_a_function", "ffi", "def f():\n    from dhp_jax import primitive", {"primitive"}),
        ("past_a_room", "attention", "import dhp_jax.ffi", {"ffi"}),
        ("the_package_itself", "partition", "import dhp_jax", {"__init__"}),
        ("by_name", "spec", "importlib.import_module('dhp_jax._native')", {"_native"}),
        ("from_verify", "verify", "from dhp_jax.spec import AttentionSpec", {"spec"}),
        ("of_a_public_name", "reference", "from dhp_jax import AttentionSpec", {"__init__"}),
    )
    def test_an_import_is_reported(self, room, source, rooms):
        assert wrong_imports(room, source) == rooms

    def test_a_file_without_a_room_is_reported(self):
        with pytest.raises(KeyError):
            wrong_imports("helpers", "import math")

    @parameterized.parameters(
        "import jax", "from jax import numpy", "import jaxlib.xla_client", "def f():\n    import jax"
    )
    def test_jax_is_reported(self, source):
        assert imports_jax(source)

    @parameterized.parameters("from jax._src import core", "import jax._src.core", "jax._src.dispatch.f()")
    def test_private_jax_is_reported(self, source):
        assert private_uses(source)

    @parameterized.parameters("target = 'dhp_attention_fwd'", "f'{x}dhp_attention_bwd'", "'''uses dhp_attention_fwd'''")
    def test_a_symbol_name_is_reported(self, source):
        assert symbol_names(source)

    def test_names_of_residuals_are_no_symbol_names(self):
        assert symbol_names(f"NAMES = {dhp_jax.CHECKPOINT_NAMES!r}") == []

    @parameterized.named_parameters(
        ("up", "device", '#include "kernels/attention_fwd_sm80.cuh"'),
        ("up_with_spaces", "kernels", '  #  include "launch/config.h"'),
        ("across", "host", '#include "launch/launch.h"'),
        ("parameters_up", "params.h", '#include "device/ct.cuh"'),
        ("own_file_in_angle_brackets", "kernels", "#include <device/ct.cuh>"),
        ("xla_outside_ffi", "launch", '#include "xla/ffi/api/ffi.h"'),
        ("python_outside_ffi", "host", "#include <pybind11/pybind11.h>"),
        ("cuda_in_ffi", "ffi", "#include <cuda_runtime.h>"),
        ("cuda_in_host", "host", "#include <cuda_bf16.h>"),
        ("relative", "device", '#include "ct.cuh"'),
        ("unknown", "device", '#include "common/helpers.h"'),
    )
    def test_an_include_is_reported(self, room, source):
        assert len(wrong_includes(room, source)) == 1

    def test_an_unknown_room_is_reported(self):
        with pytest.raises(KeyError):
            wrong_includes("common", '#include "params.h"')

    @parameterized.parameters(
        "kernel<<<grid, block>>>(params);",
        "__global__ void kernel();",
        "cudaStream_t stream;",
        "CUtensorMap map;",
        "__host__ __device__ int f();",
    )
    def test_cuda_syntax_is_reported(self, source):
        assert cuda_syntax(source)

    def test_cuda_syntax_in_a_comment_is_not_reported(self):
        assert cuda_syntax("// cudaStream_t is passed as void*\nint x; /* __global__ */") == []

    def test_using_attention_imports_jax(self):
        assert imports_jax_at_run_time("import dhp_jax\ndhp_jax.dot_product_attention")
