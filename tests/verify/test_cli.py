"""`python -m dhp_jax.verify` answers with the right exit status, needs no JAX, and believes no forged verdict."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import Policies, Verdict, __main__, cache, policy, text, verify_images
from dhp_jax.verify.cache import Cache

_PROBES = zoo.ROOT / "tests" / "verify" / "probes"
_WITHOUT = "import sys; sys.modules.update(dict.fromkeys({blocked!r})); import runpy; sys.argv[1:] = {arguments!r}; "
_RUN = "runpy.run_module('dhp_jax.verify', run_name='__main__')"


@functools.cache
def _safe():
    return str(zoo.cubin(_PROBES / "cluster.cu", "sm_90a"))


@functools.cache
def _leaky():
    return str(zoo.cubin(_PROBES / "memory.cu", "sm_90a"))


def _run(*arguments, blocked=()):
    """The command in a process of its own, in which some modules cannot be imported."""
    program = _WITHOUT.format(blocked=tuple(blocked), arguments=[*arguments, "--no-cache"]) + _RUN
    environment = {**os.environ, "PYTHONPATH": str(zoo.ROOT)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


def _main(*arguments):
    """The command in this process: exit status and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = __main__.main([*arguments, "--no-cache", "--jobs", "1"])
    return status, printed.getvalue()


class CommandTest(parameterized.TestCase):
    def test_safe(self):
        done = _run(_safe())
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("SAFE: 1 SAFE\n")

    def test_leak(self):
        done = _run(_leaky())
        assert done.returncode == 1
        assert "CT05 secret-atomic" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("LEAK: ")

    def test_unknown(self):
        done = _run(str(_PROBES / "memory.cu"))
        assert done.returncode == 2
        assert "unknown: the file is no 64-bit little-endian ELF file" in done.stdout

    def test_needs_neither_jax_nor_numpy(self):
        done = _run(_safe(), blocked=("jax", "jaxlib", "numpy", "tqdm"))
        assert (done.returncode, done.stderr) == (0, "")

    def test_blocked_module_cannot_be_imported(self):
        program = _WITHOUT.format(blocked=("jax",), arguments=[]) + "import jax"
        assert (
            "ModuleNotFoundError"
            in subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr
        )

    def test_several_files(self):
        status, said = _main(_safe(), _leaky(), "no/such/file")
        assert status == 1
        assert "no/such/file" in said

    def test_json(self):
        status, said = _main("--json", _leaky())
        kernels = json.loads(said)
        assert status == 1
        assert {"kernel", "verdict", "findings"} <= set(kernels[0])
        assert {kernel["verdict"] for kernel in kernels} == {"LEAK"}

    def test_sarif(self):
        status, said = _main("--sarif", _leaky())
        assert status == 1
        assert json.loads(said)["version"] == "2.1.0"

    def test_policy(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "policy.toml")
            path.write_text("strict = true\n[[kernel]]\nname = 'other'\nreason = 'r'\n", encoding="utf-8")
            status, said = _main("--policy", str(path), _safe())
        assert status == 2
        assert "no policy names the kernel cluster_exchange" in said

    def test_policy_that_cannot_be_read(self):
        status, said = _main("--policy", "no/such/file", _safe())
        assert status == 2
        assert "the policy file no/such/file cannot be read" in said

    def test_own_policy_is_not_strict_with_others(self):
        assert _main(_safe())[0] == 0

    def test_failure_of_the_analyser_is_unknown(self):
        with (
            mock.patch.object(__main__, "verify_images", side_effect=KeyError("a defect")),
            mock.patch("traceback.print_exc"),
        ):
            status, said = _main(_safe())
        assert status == 2
        assert "the analyser failed" in said

    def test_proof_of_the_cpu_kernels_decides_the_status(self):
        with mock.patch.object(__main__.host, "main", return_value=1) as proof:
            assert __main__.main(["--host", "--kernels=avx2"]) == 1
        proof.assert_called_once_with(["--kernels=avx2"])

    def test_failure_of_the_proof_of_the_cpu_kernels_is_unknown(self):
        with (
            mock.patch("traceback.print_exc"),
            mock.patch.object(__main__.host, "main", side_effect=KeyError("a defect")),
        ):
            status, said = _main("--host")
        assert status == 2
        assert "the analyser failed" in said

    def test_reader_that_leaves_gets_no_traceback(self):
        command = [sys.executable, "-P", "-m", "dhp_jax.verify", "--no-cache", "--json", _safe()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.close()
            said = process.stderr.read()
        assert (process.returncode, "Traceback" in said) == (2, False), said

    def test_host_must_come_first(self):
        with pytest.raises(SystemExit) as stopped, mock.patch("sys.stderr"):
            _main("--json", "--host")
        assert stopped.value.code == 2


class InstalledTest(parameterized.TestCase):
    """Without a file the kernels of the installed package are judged, by the strict policy."""

    def test_library_is_judged(self):
        kept = Cache(zoo.VERDICTS)
        reports = zoo.shipped_reports("sm_90a")
        for library in zoo.shipped_cubins("sm_90a"):
            with (
                mock.patch.object(__main__, "installed_library", return_value=library),
                mock.patch.object(__main__.Cache, "of_user", return_value=kept),
                contextlib.redirect_stdout(io.StringIO()) as said,
            ):
                assert __main__.main(["--jobs", "1"]) == 0
            ours = verify_images([library], policy.read(zoo.POLICY), cache=kept)
            assert all(report in reports for report in ours)
            assert said.getvalue() == text.render(ours)

    def test_unknown_kernel_in_it_does_not_pass(self):
        with mock.patch.object(__main__, "installed_library", return_value=_safe()):
            status, said = _main()
        assert status == 2
        assert "no policy names the kernel" in said

    def test_no_library(self):
        with (
            mock.patch.object(__main__.importlib.metadata, "files", return_value=[]),
            mock.patch.object(__main__, "LIBRARY", "libno_such_thing"),
        ):
            status, said = _main()
        assert status == 2
        assert "no libno_such_thing belongs to this dhp_jax" in said

    def test_library_of_the_installed_package_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            library = pathlib.Path(folder, "libdhp_kernels.so")
            library.touch()
            listed = mock.Mock(locate=lambda: library)
            listed.name = library.name
            with mock.patch.object(__main__.importlib.metadata, "files", return_value=[listed]):
                assert __main__.installed_library().name == "libdhp_kernels.so"


class KeepTest(parameterized.TestCase):
    def _main(self, *arguments):
        with contextlib.redirect_stdout(io.StringIO()):
            return __main__.main([_safe(), *arguments, "--jobs", "1"])

    def test_verdicts_are_kept_and_not_believed(self):
        with tempfile.TemporaryDirectory() as folder:
            assert self._main("--keep", folder) == 0
            policies = dataclasses.replace(__main__.own_policies(), strict=False)
            data = pathlib.Path(_safe()).read_bytes()
            assert [report.verdict for report in Cache(pathlib.Path(folder)).find(data, policies)] == [Verdict.SAFE]
            (entry,) = pathlib.Path(folder).iterdir()
            entry.write_text(entry.read_text().replace('"SAFE"', '"LEAK"'))
            assert self._main("--keep", folder) == 0
            assert '"SAFE"' in entry.read_text()

    def test_it_is_no_way_to_keep_nothing(self):
        with mock.patch("sys.stderr"), pytest.raises(SystemExit):
            self._main("--keep", "folder", "--no-cache")


class CacheTest(parameterized.TestCase):
    """A verdict is kept for the very same bytes, policy and analyser, and for nothing else."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name, "verdicts")

    def _verify(self, policies=None, **options):
        return verify_images([_safe()], policies or Policies(), cache=Cache(self.folder), **options)

    def _was_analysed(self, **options):
        with mock.patch("dhp_jax.verify.check.verify_kernel", side_effect=AssertionError):
            try:
                self._verify(**options)
            except AssertionError:
                return True
        return False

    def test_second_time_is_read(self):
        first = self._verify()
        assert not self._was_analysed()
        assert self._verify() == first

    def test_other_policies_are_judged_anew(self):
        self._verify()
        assert self._was_analysed(policies=Policies(strict=False, entries=(Policies().of("x"),)))

    def test_changed_analyser_judges_anew(self):
        self._verify()
        with mock.patch.object(cache, "_hash_of_analyser", return_value=b"another"):
            assert self._was_analysed()

    def test_hash_covers_every_file_of_the_analyser(self):
        root = pathlib.Path(cache.__file__).parent
        before = cache._hash_of_analyser()
        read = pathlib.Path.read_bytes
        for name in ("opcodes.py", "rules/secret_branch.py"):
            changed = lambda path, name=name: read(path) + (b"#" if path == root / name else b"")  # noqa: E731
            with mock.patch.object(pathlib.Path, "read_bytes", changed):
                assert cache._hash_of_analyser() != before

    @parameterized.parameters("", "{", "[{}]", '[{"kernel": 1}]')
    def test_broken_entry_is_judged_anew(self, content):
        self._verify()
        (entry,) = self.folder.iterdir()
        entry.write_text(content, encoding="utf-8")
        assert self._was_analysed()

    def test_folder_that_cannot_be_written_is_no_failure(self):
        self.folder.write_text("a file", encoding="utf-8")
        (report,) = self._verify()
        assert report.verdict is Verdict.SAFE

    def test_place_in_the_home_of_the_user(self):
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(self.folder)}):
            assert Cache.of_user()._folder == self.folder / "dhp_jax" / "verify"


class ParallelTest(parameterized.TestCase):
    def test_several_processes_say_the_same(self):
        paths = [_safe(), _leaky()]
        assert verify_images(paths, processes=2) == verify_images(paths)

    def test_progress(self):
        seen = []
        reports = verify_images([_safe(), _leaky()], progress=lambda done, total: seen.append((done, total)))
        assert seen == [(i + 1, len(reports)) for i in range(len(reports))]

    def test_no_file_is_unknown(self):
        (report,) = verify_images([])
        assert report.verdict is Verdict.UNKNOWN
