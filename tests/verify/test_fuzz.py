"""Whatever the verifier is fed, it answers: never with a crash, and never SAFE for what it could not read."""

import functools
import pathlib
import random
import re
import subprocess
import sys
import tempfile
from unittest import mock

import zoo
from absl.testing import parameterized
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dhp_jax.verify import UnverifiableError, Verdict, cubin, disassembly, opcodes, registers, verify_image
from dhp_jax.verify import instruction as sass

# The same examples in every run, so that a failure is repeatable.
_MANY = settings(max_examples=2000, derandomize=True, deadline=None, database=None)
_SOME = settings(_MANY, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

_LEAKY = zoo.FOLDER / "tables_and_lanes.cu"  # every kernel of it leaks
_LETTERS = "@!PTURZ0123456789ABCXY.,;[]()+-|~`{}_ *\"'/\\\n\0é"
_TOKEN = re.compile(r"[\w.]+|[^\w\s]")


_CORPUS = ("accepted_control", "accepted_sm90", "arithmetic", "cluster_sm90", "laundering", "tma_sm90")


@functools.cache
def _corpus():
    """One line of SASS for each opcode with its modifiers."""
    lines = {}
    for name in _CORPUS:
        for kernel in cubin.kernels(zoo.cubin(zoo.FOLDER / f"{name}.cu", "sm_90a").read_bytes()):
            for listed in kernel.listing.code:
                lines.setdefault(listed.instruction.text.split()[0:2][-1], listed.instruction.text)
    return sorted(set(lines.values()))


def _read(text):
    """All that is done with one line, or None where it is refused in the proper way."""
    try:
        parsed = sass.parse(0, text)
        return opcodes.known(parsed)[0].name, registers.effect(parsed)
    except UnverifiableError:
        return None


@st.composite
def _mangled_lines(draw):
    """A line of SASS with something cut out, put in, doubled or moved."""
    line = draw(st.sampled_from(_corpus()))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(line)))
        end = draw(st.integers(start, min(len(line), start + 8)))
        piece, rest = line[start:end], line[:start] + line[end:]
        put = draw(st.sampled_from(("cut", "doubled", "moved", "replaced")))
        where = draw(st.integers(0, len(rest)))
        new = draw(st.text(_LETTERS, max_size=4))
        line = {
            "cut": rest,
            "doubled": line[:end] + piece + line[end:],
            "moved": rest[:where] + piece + rest[where:],
            "replaced": line[:start] + new + line[end:],
        }[put]
    return line


class LineTest(parameterized.TestCase):
    def test_corpus_is_read(self):
        """The corpus is real: what follows mangles lines that are understood."""
        assert len(_corpus()) > 200
        assert [line for line in _corpus() if _read(line) is None] == []

    @_MANY
    @given(line=_mangled_lines())
    def test_mangled_line_is_read_or_refused(self, line):
        _read(line)

    @_MANY
    @given(line=st.text(_LETTERS, max_size=40))
    def test_noise_is_read_or_refused(self, line):
        _read(line)

    @_MANY
    @given(data=st.data())
    def test_spaces_do_not_matter(self, data):
        line = data.draw(st.sampled_from(_corpus()))
        wide = re.sub(" ", lambda _: " " * data.draw(st.integers(1, 3)), line)
        assert str(_read(wide)) == str(_read(line))

    @_MANY
    @given(line=st.data())
    def test_unknown_opcode_is_refused(self, line):
        known = line.draw(st.sampled_from(_corpus()))
        opcode = sass.parse(0, known).opcode
        position = line.draw(st.integers(0, len(opcode)))
        renamed = opcode[:position] + line.draw(st.sampled_from("QXZJ7")) + opcode[position:]
        assume(renamed not in opcodes.TABLE)
        assert _read(known.replace(opcode, renamed, 1)) is None

    @_MANY
    @given(line=st.data())
    def test_unknown_modifier_is_refused(self, line):
        known = line.draw(st.sampled_from(_corpus()))
        opcode = sass.parse(0, known).opcode
        assert _read(known.replace(opcode, f"{opcode}.QUITE_NEW", 1)) is None


def _verdicts(file):
    """Verdict by kernel, without arguments; the file is read as a whole."""
    return {report.kernel.partition("(")[0]: report.verdict for report in verify_image(file)}


def _mangled_listing(text, draw):
    """A listing of nvdisasm with lines lost, doubled or swapped, cut short, or with a letter changed."""
    lines = text.splitlines(keepends=True)
    first = draw(st.integers(0, len(lines) - 2))
    second = draw(st.integers(first + 1, len(lines) - 1))
    match draw(st.sampled_from(("lost", "doubled", "swapped", "cut", "letter", "nothing"))):
        case "lost":
            del lines[first : min(second, first + 3)]
        case "doubled":
            lines.insert(second, lines[first])
        case "swapped":
            lines[first], lines[second] = lines[second], lines[first]
        case "cut":
            return "".join(lines[:second])[: -draw(st.integers(1, 40))]
        case "letter":
            line = lines[first]
            where = draw(st.integers(0, len(line) - 1))
            lines[first] = line[:where] + draw(st.sampled_from(_LETTERS)) + line[where + 1 :]
        case "nothing":
            return ""
    return "".join(lines)


@functools.cache
def _listings():
    """What nvdisasm writes of the leaky file, by the option that tells the two listings apart."""
    written = {}
    run = disassembly._run

    def noted(*arguments):
        text = run(*arguments)
        written["-plr" if "-plr" in arguments else "-hex"] = text
        return text

    with mock.patch.object(disassembly, "_run", noted):
        verify_image(zoo.cubin(_LEAKY, "sm_90a"))
    return written


class ListingTest(parameterized.TestCase):
    """nvdisasm is not trusted: of a listing that was tampered with, nothing leaky comes out SAFE."""

    def test_without_tampering_all_leak(self):
        assert set(_verdicts(zoo.cubin(_LEAKY, "sm_90a")).values()) == {Verdict.LEAK}
        assert set(_listings()) == {"-hex", "-plr"}

    @_SOME
    @given(data=st.data())
    def test_mangled_listing_is_never_safe(self, data):
        listings = dict(_listings())
        chosen = data.draw(st.sampled_from(sorted(listings)))
        listings[chosen] = _mangled_listing(listings[chosen], data.draw)

        def tampered(*arguments):
            return listings["-plr" if "-plr" in arguments else "-hex"]

        with mock.patch.object(disassembly, "_run", tampered):
            verdicts = _verdicts(zoo.cubin(_LEAKY, "sm_90a"))
        assert verdicts
        assert Verdict.SAFE not in verdicts.values()


@functools.cache
def _extent_of_code():
    """Where the machine code of the leaky file begins and ends, in bytes of the cubin."""
    data = zoo.cubin(_LEAKY, "sm_90a").read_bytes()
    code = [kernel.listing.machine_code for kernel in cubin.kernels(data)]
    return min(data.index(part) for part in code), max(data.index(part) + len(part) for part in code)


def _noisy(seed):
    """The leaky cubin with a few bytes changed, wherever no machine code lies."""
    chance = random.Random(seed)
    data = bytearray(zoo.cubin(_LEAKY, "sm_90a").read_bytes())
    first, last = _extent_of_code()
    for _ in range(chance.randint(1, 4)):
        where = chance.choice([chance.randrange(first), chance.randrange(last, len(data))])
        data[where] = chance.randrange(256)
    return bytes(data)


class ImageTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self._folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def _verdicts_of(self, data):
        path = self._folder / "image"
        path.write_bytes(data)
        return set(_verdicts(path).values())

    @_MANY
    @given(data=st.binary(max_size=200))
    def test_garbage_is_unknown(self, data):
        assert self._verdicts_of(data) == {Verdict.UNKNOWN}

    @_MANY
    @given(
        data=st.binary(max_size=200),
        start=st.sampled_from((b"\x7fELF\x02\x01\x01", b"\x50\xed\x55\xba\x01\x00\x10\x00")),
    )
    def test_garbage_that_begins_well_is_unknown(self, data, start):
        assert self._verdicts_of(start + data) == {Verdict.UNKNOWN}

    @_SOME
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_truncated_cubin_is_unknown(self, share):
        whole = zoo.cubin(_LEAKY, "sm_90a").read_bytes()
        assert self._verdicts_of(whole[: int(share * len(whole))]) == {Verdict.UNKNOWN}

    @parameterized.parameters(*range(10))
    def test_noise_around_the_code_makes_no_leak_safe(self, seed):
        assert Verdict.SAFE not in self._verdicts_of(_noisy(seed))

    def test_disassembler_that_never_ends_is_unknown(self):
        """nvdisasm 13.2.51 does that on some cubins that were tampered with."""
        never = subprocess.TimeoutExpired("nvdisasm", 1)
        with mock.patch.object(disassembly.subprocess, "run", side_effect=never) as run:
            assert self._verdicts_of(zoo.cubin(_LEAKY, "sm_90a").read_bytes()) == {Verdict.UNKNOWN}
        assert run.call_args.kwargs["timeout"] > 0

    def test_garbage_fails_the_command(self):
        path = self._folder / "garbage"
        path.write_bytes(b"garbage" * 100)
        done = subprocess.run([sys.executable, "-P", "-m", "dhp_jax.verify", path], capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (Verdict.UNKNOWN.value, False)
