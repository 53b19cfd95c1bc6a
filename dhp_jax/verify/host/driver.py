"""Finds and runs dhp_host_proof, the program that calls the host kernels without Python and JAX (cuda/proof)."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

from dhp_jax.verify.verdict import UnverifiableError

_PROGRAM, _LIBRARY = "dhp_host_proof", "libdhp_kernels.so"
KERNELS = ("fwd", "bwd", "bwd_bias")
_LONGEST_RUN = 1800  # seconds
_WITHOUT_MESSAGE = "it gave no message"


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that the driver can make.

    Attributes:
      name: such as "causal_float32".
      has_bias: whether bwd_bias is there to be run.
      sees_keys: whether the band lets any query see any key; else the outputs hold nothing secret.
    """

    name: str
    has_bias: bool
    sees_keys: bool

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels that this call can run."""
        return KERNELS if self.has_bias else KERNELS[:2]


@dataclasses.dataclass(frozen=True)
class Driver:
    """The installed program, beside the library that it calls."""

    program: pathlib.Path
    library: pathlib.Path

    def run(self, mode: str, *arguments: str, under: Sequence[str] = ()) -> list[list[str]]:
        """Runs one mode; returns the fields of each line.

        Args:
          mode: what the driver is to do.
          *arguments: its further arguments.
          under: a command to run it under, such as valgrind with its options.

        Raises:
          UnverifiableError: it did not run to its end.
        """
        command = [*under, str(self.program), mode, *arguments]
        # Functions of other libraries are looked up at the start, not inside of what is measured.
        environment = {**os.environ, "LD_BIND_NOW": "1"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=_LONGEST_RUN, check=False
            )
        except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired) as error:
            raise UnverifiableError(f"`{' '.join(command)}` did not run: {error}") from error
        lines = done.stdout.splitlines()
        if done.returncode != 0 or (mode != "list" and lines[-1:] != ["done"]):
            reason = done.stderr.strip()[-1000:] or _WITHOUT_MESSAGE
            raise UnverifiableError(f"`{' '.join(command)}` stopped early with status {done.returncode}: {reason}")
        return [line.split("\t") for line in lines if line != "done"]

    def kernels(self) -> dict[str, bool]:
        """Each instruction set in the library, narrowest first, and whether this processor can run it."""
        return {fields[1]: fields[2] == "runs" for fields in self.run("list") if fields[0] == "kernels"}

    def calls(self) -> list[Call]:
        """Every call that the driver can make."""
        rows = [fields[1:] for fields in self.run("list") if fields[0] == "call"]
        return [Call(name, bias == "bias", sees == "sees") for name, bias, sees in rows]


def find(folder: pathlib.Path | None = None) -> Driver:
    """The driver in a folder, by default where the compiled parts of this package are installed.

    Raises:
      UnverifiableError: it is not there, or runs another library than the one beside it.
    """
    if folder is None:
        package = __name__.partition(".")[0]
        compiled = importlib.util.find_spec(f"{package}._native")  # found, not imported
        folder = pathlib.Path(compiled.origin).parent if compiled is not None and compiled.origin else None
    driver = Driver(folder / _PROGRAM, folder / _LIBRARY) if folder is not None else None
    if driver is None or not driver.program.is_file() or not driver.library.is_file():
        raise UnverifiableError(
            f"{_PROGRAM} and {_LIBRARY} are not in {folder or 'this environment'}; a build on Linux for x86-64 or "
            "aarch64 installs both beside the compiled module. Install dhp_jax again with `pip install .`"
        )
    loaded = [fields[1] for fields in driver.run("list") if fields[0] == "library"]
    if len(loaded) != 1 or not driver.library.samefile(loaded[0]):
        raise UnverifiableError(
            f"{driver.program} runs the library {loaded}; it must run {driver.library}, the one that is judged. "
            "Install dhp_jax again with `pip install .`, and leave LD_LIBRARY_PATH and LD_PRELOAD unset"
        )
    return driver


def valgrind(tool: str, *options: str) -> list[str]:
    """The start of a command that runs under a tool of valgrind.

    Raises:
      UnverifiableError: valgrind is not installed.
    """
    program = shutil.which("valgrind")
    if program is None:
        raise UnverifiableError(
            "valgrind is not installed, and this check runs the kernels under it. Install it with "
            "`apt-get install valgrind`, or your system's counterpart"
        )
    return [program, f"--tool={tool}", "-q", *options]
