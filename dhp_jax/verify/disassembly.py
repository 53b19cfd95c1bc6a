"""Runs nvdisasm and believes it only as far as it can be checked.

Two listings of the same cubin, one with encodings and source lines, one with the life ranges of registers, must agree
with each other, with the bytes of the file, and with our own table of what each instruction reads and writes. Anything
off makes the verdict UNKNOWN: a version that was not tested, a producer newer than the disassembler, a word on
stderr, a line of unknown shape, an instruction missing.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from dhp_jax.verify import instruction, liveness
from dhp_jax.verify.instruction import Instruction
from dhp_jax.verify.liveness import Life
from dhp_jax.verify.verdict import UnverifiableError

PACKAGE = "nvidia-cuda-nvdisasm"
_SECONDS = 300  # the largest of our cubins takes a few
TESTED = ("13.2.51", "13.3.73", "13.5.37")  # before 13.3 it refuses kernels of 255 registers


@dataclasses.dataclass(frozen=True)
class Frame:
    """A source line."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Listed:
    """One instruction of a listing.

    Attributes:
        instruction: taken apart.
        encoding: its 16 bytes.
        frames: the source line, then the lines it was inlined at; empty without line info.
        life: what nvdisasm says of registers; None for padding.
    """

    instruction: Instruction
    encoding: bytes
    frames: tuple[Frame, ...]
    life: Life | None

    @property
    def write_scoreboard(self) -> int | None:
        """The scoreboard that signals the result, from the scheduling bits; None where the latency is fixed."""
        number = int.from_bytes(self.encoding, "little") >> 110 & 7
        return None if number == 7 else number


@dataclasses.dataclass(frozen=True)
class Listing:
    """The code of one section: its instructions in order, the addresses of labels, and why it cannot be read, if so."""

    section: str
    code: tuple[Listed, ...]
    labels: dict[str, int]
    problem: UnverifiableError | None = None

    @property
    def machine_code(self) -> bytes:
        """The bytes that were disassembled."""
        return b"".join(listed.encoding for listed in self.code)


@dataclasses.dataclass(frozen=True)
class Unread:
    """One section as nvdisasm wrote it, twice. To read it takes long; another process can."""

    section: str
    lines: tuple[str, ...]
    lives: tuple[str, ...]

    def read(self) -> Listing:
        """A listing, without code where any of it cannot be read: the other sections are none the worse for it."""
        lives = liveness.parse(self.lives)
        try:
            return _listing(self.section, self.lines, lives)
        except UnverifiableError as problem:
            return Listing(self.section, (), {}, problem)


def version() -> str:
    """The version of the installed nvdisasm, as its package says."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise UnverifiableError("nvdisasm is not installed", "Install it: pip install 'dhp_jax[verify]'.") from None


def sections(cubin: bytes, producer: tuple[int, int]) -> tuple[str, list[Unread]]:
    """The architecture of a cubin, such as "sm_90a", and all its code, not yet read.

    Args:
        cubin: the file.
        producer: major and minor version of the ptxas that made it.
    """
    _check_versions(producer)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "image.cubin")
        path.write_bytes(cubin)
        listings = (("-gi", "-hex"), ("-plr", "-lrm", "narrow"))
        with ThreadPoolExecutor() as pool:
            full, lives = pool.map(lambda options: _run("-c", *options, str(path)), listings)
    by_section = dict(_sections(lives))
    target = re.search(r"^\s*\.target\s+(sm_\w+)", full, re.MULTILINE)
    if not target:
        raise _odd("the file", "no .target")
    return target[1], [Unread(name, lines, by_section.get(name, ())) for name, lines in _sections(full)]


def _check_versions(producer: tuple[int, int]) -> None:
    installed = version()
    if installed not in TESTED:
        raise UnverifiableError(
            f"nvdisasm {installed} is installed, the analysis was tested with {', '.join(TESTED)}",
            f"Install one of them: pip install {PACKAGE}=={TESTED[-1]}.",
        )
    own = tuple(int(part) for part in installed.split(".")[:2])
    if producer[0] != own[0] or producer > own:
        raise UnverifiableError(
            f"ptxas {producer[0]}.{producer[1]} made this code, and nvdisasm {installed} reads that of {own[0]}.0 to "
            f"{own[0]}.{own[1]}",
            f"Compile with such a toolkit, or install a newer one: pip install {PACKAGE}=={TESTED[-1]}.",
        )


def _run(*arguments: str) -> str:
    tool = importlib.metadata.distribution(PACKAGE).locate_file(f"nvidia/cu{version().split('.')[0]}/bin/nvdisasm")
    try:
        done = subprocess.run(
            [str(tool), *arguments], capture_output=True, text=True, errors="replace", check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UnverifiableError(
            f"nvdisasm did not end within {_SECONDS} s", "Check that the file is a whole cubin."
        ) from None
    except OSError as error:
        raise UnverifiableError(f"nvdisasm does not start: {error}", f"Reinstall {PACKAGE}.") from None
    if done.returncode or done.stderr.strip():
        said = done.stderr.strip().splitlines()
        raise UnverifiableError(
            f"nvdisasm ended with status {done.returncode} and said {said[:1]}",
            "Its output is not to be trusted then; check that the file is a whole cubin.",
        )
    return done.stdout


_SECTION = re.compile(r"//-+ (\S+) +-+$")
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x([0-9a-f]{16}) \*/\s*")
_SECOND_HALF = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/\s*")
_LABEL = re.compile(r"([^\s:/]+):\s*")
_FRAME = re.compile(r'\s*//## File "([^"]*)", line (\d+)( inlined at "[^"]*", line \d+)?\s*')
_DIRECTIVE = re.compile(r"\s*(\.(global|weak|local|type|size|other|section|sectionflags|sectioninfo|align)\b.*)?")


def _sections(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The executable sections of a listing."""
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        header = _SECTION.match(line)
        if header:
            if name.startswith(".text."):
                yield name, tuple(lines)
            name, lines = header[1], []
        else:
            lines.append(line)
    if name.startswith(".text."):
        yield name, tuple(lines)


def _listing(section: str, lines: Sequence[str], lives: dict[int, Life]) -> Listing:
    code: list[Listed] = []
    labels: dict[str, int] = {}
    frames: list[Frame] = []
    fresh = True  # whether the next source comment starts a new place
    rest = iter(lines)
    for line in rest:
        if match := _INSTRUCTION.fullmatch(line):
            second = _SECOND_HALF.fullmatch(next(rest, ""))
            if int(match[1], 16) != len(code) * instruction.SIZE or not second:
                raise _odd(section, line)
            parsed = instruction.parse(int(match[1], 16), match[2])
            encoding = int(match[3], 16).to_bytes(8, "little") + int(second[1], 16).to_bytes(8, "little")
            code.append(Listed(parsed, encoding, tuple(frames), lives.pop(parsed.address, None)))
            fresh = True
        elif match := _FRAME.fullmatch(line):
            frames = [Frame(match[1], int(match[2]))] if fresh else [*frames, Frame(match[1], int(match[2]))]
            fresh = not match[3]
        elif match := _LABEL.fullmatch(line):
            labels[match[1]] = len(code) * instruction.SIZE
        elif not _DIRECTIVE.fullmatch(line):
            raise _odd(section, line)
    if lives:
        raise _odd(section, f"life ranges at {min(lives):#x}, where the other listing has no instruction")
    return Listing(section, tuple(_checked(section, code)), labels)


def _checked(section: str, code: list[Listed]) -> Iterator[Listed]:
    """Life ranges must be there for all but the padding at the end, and agree with our own table."""
    padding = len(code)
    while padding and code[padding - 1].instruction.text == "NOP":
        padding -= 1
    for position, listed in enumerate(code):
        if listed.life is not None:
            yield dataclasses.replace(listed, instruction=liveness.check(listed.instruction, listed.life))
        elif position >= padding:
            yield listed
        else:
            raise _odd(section, f"no life ranges for {listed.instruction.text!r}")


def _odd(section: str, line: str) -> UnverifiableError:
    return UnverifiableError(
        f"nvdisasm wrote of {section} what cannot be read: {line.strip()!r}",
        "verify/disassembly.py must learn the line first.",
    )
