"""Promises of the C++ sources that no call from Python can show: small programs over the headers, compiled here."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")
def test_rows_see_the_keys_that_are_seen_by_them(tmp_path):
    program = tmp_path / "visible_blocks"
    source = ROOT / "tests" / "native" / "visible_blocks.cc"
    subprocess.run([COMPILER, "-std=c++17", "-O1", "-I", ROOT / "cuda", source, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[-1] == "0 of 20412 disagree"
