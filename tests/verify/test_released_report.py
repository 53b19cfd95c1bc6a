"""docs/verified_kernels.md and .json agree, hold no unproved kernel, and are about the kernels of this source."""

import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import tempfile
from unittest import mock

import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import __main__, elf, image

_PROGRAM = zoo.ROOT / "docs" / "verified_kernels.py"
_REGENERATE = "run python docs/verified_kernels.py on an installed build with CUDA kernels, and commit both files"


def _load(path):
    """A program of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


verified_kernels = _load(_PROGRAM)
RELEASED = json.loads(verified_kernels.REPORT.read_text(encoding="utf-8"))


def hashes(reports, architecture):
    """Code hash by symbol, of one architecture."""
    return {report["symbol"]: report["code_hash"] for report in reports if report["architecture"] == architecture}


def differences(released, compiled):
    """The symbols whose code is another, or that only one of the two has."""
    return sorted(
        symbol for symbol in released.keys() | compiled.keys() if released.get(symbol) != compiled.get(symbol)
    )


def hashes_in(library):
    """(symbol, code hash) of all kernels in a library; nothing is disassembled."""
    sections = [section for data in image.cubins(library.read_bytes()) for section in elf.parse(data).sections]
    code = [section for section in sections if section.executable]
    return {(section.name.removeprefix(".text."), hashlib.sha256(section.data).hexdigest()) for section in code}


def report(**changes):
    return {**RELEASED[0], **changes}


class ReleasedTest(parameterized.TestCase):
    def test_page_shows_the_report(self):
        shown = verified_kernels.PAGE.read_text(encoding="utf-8")
        assert shown == verified_kernels.page(RELEASED), _REGENERATE

    def test_report_is_as_the_program_writes_it(self):
        assert verified_kernels.released(RELEASED) == RELEASED, _REGENERATE

    def test_every_kernel_is_named_once(self):
        rows = [(verified_kernels.name(kernel), kernel["architecture"]) for kernel in RELEASED]
        assert sorted(set(rows)) == sorted(rows)
        assert {architecture for _, architecture in rows} == set(zoo.ARCHITECTURES)

    def test_source_lines_are_in_the_repository(self):
        files = {branch["line"]["file"] for kernel in RELEASED for branch in kernel["branches"] if branch["line"]}
        ours = {file for file in files if "/" in file}
        assert ours
        assert {file for file in ours if not (zoo.ROOT / file).is_file()} == set(), _REGENERATE

    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_kernels_compiled_now_are_those_that_were_released(self, architecture):
        kernels = zoo.shipped_kernels(architecture)
        (ptxas,) = {kernel.ptxas for kernel in kernels}
        (released_by,) = {kernel["ptxas"] for kernel in RELEASED}
        if ptxas != released_by and not os.environ.get("CI"):
            pytest.skip(f"ptxas {ptxas} makes other code than {released_by}, which made the released kernels")
        compiled = {kernel.symbol: kernel.code_hash for kernel in kernels}
        changed = differences(hashes(RELEASED, architecture), compiled)
        assert not changed, f"{len(changed)} kernels, {changed[:3]}, are not those that were released: {_REGENERATE}"

    @pytest.mark.skipif(not os.environ.get("CI"), reason="only CI surely builds with the ptxas of the release")
    def test_installed_kernels_are_those_that_were_released(self):
        installed = hashes_in(__main__.installed_library())
        released = {(kernel["symbol"], kernel["code_hash"]) for kernel in RELEASED}
        assert installed == released, _REGENERATE


class ComparisonTest(parameterized.TestCase):
    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_hash_is_the_one_that_is_reported(self, architecture):
        known = {(kernel.symbol, kernel.code_hash) for kernel in zoo.shipped_kernels(architecture)}
        assert set().union(*map(hashes_in, zoo.shipped_cubins(architecture))) == known

    @parameterized.parameters(({"a": "1"}, {"a": "2"}), ({"a": "1"}, {}), ({}, {"a": "1"}))
    def test_other_code_is_seen(self, released, compiled):
        assert differences(released, compiled) == ["a"]

    def test_architectures_are_kept_apart(self):
        both = [report(architecture=architecture, code_hash=architecture) for architecture in zoo.ARCHITECTURES]
        assert list(hashes(both, "sm_90a").values()) == ["sm_90a"]


class ProgramTest(parameterized.TestCase):
    """What writes the two files."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for name in ("REPORT", "PAGE"):
            path = self.folder / getattr(verified_kernels, name).name
            self.enterContext(mock.patch.object(verified_kernels, name, path))

    def write(self, reports):
        path = self.folder / "given.json"
        path.write_text(json.dumps(reports), encoding="utf-8")
        return str(path)

    def written(self):
        page = verified_kernels.PAGE.read_text(encoding="utf-8")
        return json.loads(verified_kernels.REPORT.read_text(encoding="utf-8")), page

    def test_from_a_report_in_any_order(self):
        verified_kernels.main([self.write(RELEASED[::-1])])
        assert self.written() == (RELEASED, verified_kernels.page(RELEASED))

    def test_from_the_installed_package(self):
        done = subprocess.CompletedProcess([], 0, json.dumps(RELEASED), "")
        with mock.patch.object(subprocess, "run", return_value=done) as run:
            verified_kernels.main([])
        command = run.call_args.args[0]
        assert {"-P", "--no-cache"} <= set(command)
        assert self.written()[0] == RELEASED

    @parameterized.parameters("LEAK", "UNKNOWN")
    def test_kernel_that_is_not_proved(self, verdict):
        path = self.write([*RELEASED, report(verdict=verdict, kernel="k", architecture="sm_99")])
        with pytest.raises(SystemExit, match=rf"1 of {len(RELEASED) + 1} kernels .* not SAFE \['k sm_99'\]; .*Mend"):
            verified_kernels.main([path])
        assert not verified_kernels.REPORT.exists()

    def test_no_kernels(self):
        with pytest.raises(SystemExit, match="0 of 0 kernels"):
            verified_kernels.main([self.write([])])

    def test_no_report(self):
        path = self.folder / "given.json"
        path.write_text("SAFE", encoding="utf-8")
        with pytest.raises(SystemExit, match="Expecting value"):
            verified_kernels.main([str(path)])
        with pytest.raises(SystemExit, match="No such file"):
            verified_kernels.main([str(self.folder / "gone.json")])

    @parameterized.parameters(
        ("/somewhere/else/cuda/kernels/attention_fwd_sm80.cuh", "cuda/kernels/attention_fwd_sm80.cuh"),
        ("/usr/include/sm_30_intrinsics.hpp", "sm_30_intrinsics.hpp"),
    )
    def test_folders_of_the_build_machine_are_left_out(self, file, kept):
        branch = {"address": 0, "instruction": "EXIT", "sort": "exit", "line": {"file": file, "line": 1}}
        without_line = {**branch, "line": None}
        (released,) = verified_kernels.released([report(branches=[branch, without_line])])
        assert [branch["line"] for branch in released["branches"]] == [{"file": kept, "line": 1}, None]

    @parameterized.parameters(
        ("void dhp::f<dhp::Config<(dhp::DType)2> >(dhp::P<(int)1>)", "f<Config<(DType)2>>"),
        ("void dhp::f<dhp::Config<(dhp::DType)0>, dhp::P>(dhp::P)", "f<Config<(DType)0>, P>"),
        ("plain(float*, int)", "plain"),
        ("flash_forward", "flash_forward"),
    )
    def test_name(self, kernel, name):
        assert verified_kernels.name({"kernel": kernel}) == name
