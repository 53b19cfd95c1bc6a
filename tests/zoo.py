"""The kernels of tests/leaky: what their sources say about them, and how they and those that ship are compiled.

A kernel's head is a comment: first what it does, then lines of the form

    policy: secret scalar 0, or: policy: public buffer 1    (index of the parameter)
    policy: guarded arithmetic                              (a secret may guard any arithmetic)
    sass: REGEX, or: sass on sm_90a: REGEX                  (some instruction of the kernel matches it)
    expect: SAFE

A kernel that leaks carries its expectations at the end of the offending lines: `// expect: CT01, CT03 on sm_90a`.
"""

import dataclasses
import functools
import gc
import hashlib
import importlib.metadata
import os
import pathlib
import pickle
import re

import nvcc
from nvcc import ROOT

from dhp_jax.verify import cubin as image
from dhp_jax.verify import policy, verify_images
from dhp_jax.verify.__main__ import installed_library
from dhp_jax.verify.cache import Cache, _hash_of_analyser
from dhp_jax.verify.image import cubins

FOLDER = ROOT / "tests" / "leaky"
ARCHITECTURES = ("sm_80", "sm_90a")
HOPPER_ONLY = "_sm90"  # how the names of such files end
BUILD_CONTROLS = ("serialised.cu", "spill.cu")  # which the build must refuse, no kernels of the zoo

VERDICTS = ROOT / "build" / "verdicts"  # on what ships, kept from run to run and by `make verify`
POLICY = ROOT / "dhp_jax" / "verify" / "policy.toml"  # for what ships
_FLAGS = ("-cubin", "-lineinfo", "-O3", "-std=c++20")
_CUDA = ROOT / "cuda"
_LAUNCHERS = {  # they instantiate every kernel that ships
    "sm_80": ("launch.cu",),
    "sm_90a": ("launch.cu", "launch_sm90.cu", "launch_small_sm90.cu", "launch_decode_sm90.cu"),
}
_SHIPPED_FLAGS = (*_FLAGS, "-ftz=true", "-Werror=all-warnings", "-Xptxas=-warn-spills,-warn-lmem-usage,-Werror")
_SHIPPED_LAUNCHER = ("sh", ROOT / "cuda" / "nvcc.sh")

_SIZES = re.compile(r"\b(64|128|256)\b")  # of channels, in the name of an instance
_NAME = re.compile(r"\b([LBXY]\d\d\w*)\(")
_ITEM = re.compile(r"(?P<rule>CT\d\d)(?: on (?P<architecture>sm_\w+))?")
_POLICY = re.compile(r"// policy: (?P<sort>secret scalar|public buffer) (?P<index>\d+)")
_GUARDED_ARITHMETIC = "// policy: guarded arithmetic"
_SIGN = re.compile(r"// sass(?: on (?P<architecture>sm_\w+))?: (?P<pattern>.+)")
_MARK = re.compile(r"//\s*(?:(?:policy|sass|expect)|(?:Policy|SASS|Sass|Expect)\s*:)")


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    """A rule on a line of the kernel's source file."""

    line: int
    rule: str


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel, as its source presents it. `lines` are those of its definition."""

    name: str
    file: pathlib.Path
    lines: range
    summary: str
    secret_scalars: tuple[int, ...]
    public_buffers: tuple[int, ...]
    guarded_arithmetic: bool
    signs: tuple[tuple[str | None, str], ...]  # architecture (None: all), regular expression
    is_safe: bool
    expectations: tuple[tuple[str | None, Finding], ...]  # architecture (None: all), finding

    @property
    def case(self):
        """L29a of L29a_shared_memory."""
        return self.name.partition("_")[0]

    @property
    def architectures(self):
        return ("sm_90a",) if self.file.stem.endswith(HOPPER_ONLY) else ARCHITECTURES

    def expected(self, architecture):
        return {finding for where, finding in self.expectations if where in (None, architecture)}


def files():
    return sorted(path for path in FOLDER.glob("*.cu") if path.name not in BUILD_CONTROLS)


@functools.cache
def kernels():
    return tuple(kernel for file in files() for kernel in parse(file, file.read_text(encoding="utf-8")))


def parse(file, text):
    """The kernels of one source text. A mark that cannot be read, or stands outside a kernel, is an error."""
    lines = text.split("\n")
    found, taken = [], set()
    for start, line in enumerate(lines, 1):
        if not line.startswith("__global__"):
            continue
        end = next(number for number in range(start, len(lines) + 1) if lines[number - 1].startswith("}"))
        head = start
        while head > 1 and lines[head - 2].startswith("//"):
            head -= 1
        found.append(_kernel(file, lines, range(head, start), range(start, end + 1)))
        taken.update(range(head, end + 1))
    stray = [number for number, line in enumerate(lines, 1) if _MARK.search(line) and number not in taken]
    if stray:
        raise ValueError(f"{file}:{stray[0]}: a mark outside any kernel. Put it above one, or on one of its lines.")
    return found


def _kernel(file, lines, head, body):
    text, policy, signs, is_safe, guarded = [], {"secret scalar": [], "public buffer": []}, [], False, False
    for number in head:
        line = lines[number - 1]
        if match := _POLICY.fullmatch(line):
            policy[match["sort"]].append(int(match["index"]))
        elif match := _SIGN.fullmatch(line):
            signs.append((match["architecture"], match["pattern"]))
        elif line == _GUARDED_ARITHMETIC:
            guarded = True
        elif line == "// expect: SAFE":
            is_safe = True
        elif _MARK.search(line):
            raise ValueError(f"{file}:{number}: {line!r} is not of a form that tests/zoo.py lists. Correct it.")
        else:
            text.append(line.removeprefix("//").strip())
    expectations = tuple(item for number in body for item in _expectations(file, number, lines[number - 1]))
    name = _NAME.search(" ".join(lines[body.start - 1 : body.stop - 1]))[1]
    if is_safe == bool(expectations):
        raise ValueError(f"{file}: {name} must expect findings or SAFE, and not both. Say which.")
    return Kernel(
        name=name,
        file=file,
        lines=body,
        summary=" ".join(filter(None, text)),
        secret_scalars=tuple(policy["secret scalar"]),
        public_buffers=tuple(policy["public buffer"]),
        guarded_arithmetic=guarded,
        signs=tuple(signs),
        is_safe=is_safe,
        expectations=expectations,
    )


def _expectations(file, number, line):
    code, separator, items = line.partition("// expect: ")
    if not separator:
        if _MARK.search(line):
            raise ValueError(f"{file}:{number}: {line.strip()!r} does not read '// expect: RULE, ...'. Correct it.")
        return []
    matches = [_ITEM.fullmatch(item) for item in items.split(", ")]
    known = all(match and match["architecture"] in (None, *ARCHITECTURES) for match in matches)
    if not known or not code.strip():
        raise ValueError(f"{file}:{number}: expectation {items!r} is no list of 'CTnn' or 'CTnn on ARCH'. Correct it.")
    return [(match["architecture"], Finding(number, match["rule"])) for match in matches]


def cubin(file, architecture):
    """Path of a compiled file, built where that has not been done. Skips the test where there is no nvcc."""
    return _compiled(file, sorted(file.parent.glob("*.cuh")), architecture, _FLAGS)


@functools.cache
def shipped_cubins(architecture):
    """Paths of the compiled kernels that ship.

    In CI the installed library was just built from these sources, and they are taken out of it. Elsewhere it may be
    older, or have none.
    """
    if not os.environ.get("CI"):
        return tuple(_shipped_cubin(_CUDA / "launch" / name, architecture) for name in _LAUNCHERS[architecture])
    found = [data for data in cubins(installed_library().read_bytes()) if image.architecture(data) == architecture]
    return tuple(nvcc.kept(f"shipped.{architecture}.{index}.cubin", data) for index, data in enumerate(found))


def as_shipped(file, architecture, *flags):
    """Path of a file compiled by the rules of what ships: a spill or a warning is a failure."""
    return _compiled(file, [], architecture, (*_SHIPPED_FLAGS, *flags), _SHIPPED_LAUNCHER)


def _shipped_cubin(file, architecture):
    with nvcc.alone(f"{file.stem}.{architecture}"):
        headers = nvcc.included(file, _CUDA)
        return _compiled(file, headers, architecture, (*_SHIPPED_FLAGS, f"-I{_CUDA}"), _SHIPPED_LAUNCHER)


@functools.cache
def shipped_kernels(architecture):
    """The kernels that ship, taken apart: 140,000 instructions an architecture, kept from run to run."""
    images = [path.read_bytes() for path in shipped_cubins(architecture)]
    digest = hashlib.sha256(_hash_of_analyser())
    for data in images:
        digest.update(data)
    path = nvcc.BUILT / f"kernels.{architecture}.{digest.hexdigest()[:16]}.pickle"
    gc.disable()  # all of it stays, and the collector would look at it again and again
    try:
        with nvcc.alone(f"kernels.{architecture}"):
            if not path.exists():
                found = [kernel for data in images for kernel in image.kernels(data)]
                nvcc.kept(path.name, pickle.dumps(found))
            return tuple(pickle.loads(path.read_bytes()))
    finally:
        gc.freeze()
        gc.enable()


@functools.cache
def typical_kernels(architecture):
    """Of the kernels that ship, one of all that differ in the number of channels, or as bfloat16 and float16 do."""
    chosen = {}
    for kernel in sorted(shipped_kernels(architecture), key=lambda kernel: len(kernel.code)):
        chosen.setdefault(_SIZES.sub("", kernel.name).replace("DType)2", "DType)1"), kernel)
    return tuple(chosen.values())


@functools.cache
def shipped_reports(architecture):
    """What the verifier says of the kernels that ship, by the policy that ships."""
    paths = shipped_cubins(architecture)
    with nvcc.alone(f"verdicts.{architecture}"):
        return tuple(verify_images(paths, policy.read(POLICY), cache=Cache(VERDICTS)))


def _compiled(file, headers, architecture, flags, launcher=()):
    try:
        importlib.metadata.version("nvidia-cuda-nvdisasm")
    except importlib.metadata.PackageNotFoundError:
        nvcc.cannot_run("no nvdisasm: pip install 'dhp_jax[verify]'")
    target = f"-gencode=arch={architecture.replace('sm', 'compute')},code={architecture}"
    return nvcc.compiled(f"{file.stem}.{architecture}.cubin", [file, *headers], (target, *flags), launcher)
