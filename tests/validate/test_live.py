"""On a GPU: every gate catches its control."""

import subprocess
import sys
import tempfile

import pytest
from absl.testing import parameterized

pytestmark = pytest.mark.gpu


class SelfTest(parameterized.TestCase):
    def test_every_control_is_caught(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-P", "-m", "dhp_jax.validate", "--self-test", f"--out={folder}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
