"""What happens to a part is kept: also that its process died, and that the run was killed."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import pytest
import validate_child
from absl.testing import parameterized

import dhp_jax
from dhp_jax.validate import runner, store
from dhp_jax.validate.child import python
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.store import Store

_CHILD = validate_child.__file__


class RunnerTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.store = Store(self.folder, "this build")

    def run_parts(self, *names, seconds=60.0):
        parts = [validate_child.PARTS[name] for name in names]
        runner.run(parts, self.store, quick=True, seconds=seconds, command=(_CHILD,))
        return {name: self.store.find(name) for name in names}

    def log(self):
        return (self.folder / "log").read_text().split()

    def test_a_part_that_passes_is_kept_with_its_figures(self):
        assert self.run_parts("good")["good"] == [Check("good", Status.PASS, "it is well", {"n": 1})]

    @parameterized.parameters(
        ("crashes", "died of SIGSEGV"),
        ("leaves", "ended with status 7"),
        ("raises", "RuntimeError: no such thing"),
        ("silent", "said nothing of silent"),
    )
    def test_a_part_that_ends_badly_fails_and_the_next_runs(self, name, told):
        found = self.run_parts(name, "good")
        (check, *_) = found[name]
        assert check.status is Status.FAIL
        assert told in check.detail
        assert found["good"][0].status is Status.PASS
        assert self.log() == [name, "good"]

    def test_a_part_that_does_not_end_fails(self):
        # However long the child takes to begin on a busy machine.
        self.enter_context(mock.patch.object(runner, "_MOST", 0.05))
        found = self.run_parts("hangs", "good", seconds=5.0)
        assert found["hangs"][0].status is Status.FAIL
        assert "not done in" in found["hangs"][0].detail
        assert found["good"] is None  # no time was left: it has not run, and can be resumed
        assert self.run_parts("hangs", "good")["good"][0].status is Status.PASS

    def test_what_is_kept_is_not_run_again(self):
        self.run_parts("good")
        self.run_parts("good", "raises")
        assert self.log() == ["good", "raises"]

    def test_another_build_keeps_nothing(self):
        self.run_parts("good")
        assert Store(self.folder, "another build").find("good") is None

    def start(self):
        """A process that runs "good" and "waits", and has come to the second."""
        program = (
            "import pathlib, signal, sys, validate_child as c; from dhp_jax.validate import runner, store\n"
            "signal.signal(signal.SIGTERM, runner.stop)\n"
            "parts = [c.PARTS[n] for n in ('good', 'waits')]\n"
            "kept = store.Store(pathlib.Path(sys.argv[1]), 'this build')\n"
            "runner.run(parts, kept, quick=True, command=(c.__file__,))"
        )
        environment = {"PYTHONPATH": f"{pathlib.Path(_CHILD).parent}:{pathlib.Path(runner.__file__).parents[2]}"}
        command = [sys.executable, "-c", program, str(self.folder)]
        run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        while self.store.find("good") is None or not (self.folder / "process").exists():
            assert run.poll() is None
            time.sleep(0.02)
        return run

    def test_a_run_that_is_asked_to_end_takes_its_child_along(self):
        run = self.start()
        child = int((self.folder / "process").read_text())
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
        assert run.returncode == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)

    def test_a_killed_run_goes_on_where_it_stopped(self):
        run = self.start()
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=60)  # its child writes to the same pipe: both are gone, and the part did not end
        (self.folder / "go on").touch()
        found = self.run_parts("good", "waits")
        assert [check.status for checks in found.values() for check in checks] == [Status.PASS, Status.PASS]
        assert self.log() == ["good", "waits", "waits"]


class StoreTest(parameterized.TestCase):
    def test_a_broken_file_counts_as_not_there(self):
        with tempfile.TemporaryDirectory() as folder:
            kept = Store(pathlib.Path(folder), "this build")
            kept.keep("part", [Check("part", Status.PASS, "")], 1.5)
            assert kept.seconds("part") == 1.5
            (path,) = pathlib.Path(folder, "parts").glob("part.json")
            path.write_text(path.read_text()[:40])
            assert kept.find("part") is None
            assert kept.seconds("part") == 0

    def test_identity_follows_the_options(self):
        assert store.identity(quick=True) == store.identity(quick=True) != store.identity(quick=False)


class ChildTest(parameterized.TestCase):
    def test_it_imports_what_runs_here_and_not_what_lies_in_the_working_directory(self):
        own = pathlib.Path(dhp_jax.__file__).resolve().parents[1]
        with tempfile.TemporaryDirectory() as folder:
            other = pathlib.Path(folder, "dhp_jax", "__init__.py")
            other.parent.mkdir()
            other.write_text("raise ImportError('another')\n")
            for place in (folder, own):
                with contextlib.chdir(place):
                    command = [*python(), "-c", "import dhp_jax; print(dhp_jax.__file__)"]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                assert pathlib.Path(done.stdout.strip()).resolve() == own / "dhp_jax" / "__init__.py"
