"""The pages of docs/ are true: they explain every message and no other, what they show runs, and the site builds."""

import ast
import functools
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap
import traceback
import unittest
import unittest.mock

import jax
import jax.export
import numpy as np
import pytest
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from messages import (
    Message,
    ambiguous,
    cmake_messages,
    entries,
    native_messages,
    native_texts,
    python_constants,
    python_texts,
    raised_messages,
    shell_messages,
    stale,
    unexplained,
    without_exception,
)

import dhp_jax

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"

# ---- Messages --------------------------------------------------------------------------------------------------------

ENTRIES = entries((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
OTHERS = [entry.quote for entry in ENTRIES if entry.section == "Messages of JAX and XLA"]
OURS = [entry.quote for entry in ENTRIES if entry.quote not in OTHERS]

# dhp_jax/verify is a tool with messages and documents of its own. module.cc has docstrings.
PYTHON = [*ROOT.glob("dhp_jax/*.py"), *ROOT.glob("build_backend/*.py")]
NATIVE = [
    path
    for room in ("ffi", "host", "launch")
    for path in (ROOT / "cuda" / room).rglob("*")
    if path.suffix in (".h", ".cc", ".cu", ".cuh") and path.name != "module.cc"
]
CMAKE = [ROOT / "CMakeLists.txt", ROOT / "cuda/CMakeLists.txt"]
SHELL = [ROOT / "cuda/nvcc.sh"]

# Raised only to be caught in the same file, and raised again with a message.
CAUGHT = ("… is no such scalar",)


def _read(paths):
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


CONSTANTS = {name: value for source in _read(PYTHON).values() for name, value in python_constants(source).items()}
MESSAGES = {
    **{name: raised_messages(source, name, CONSTANTS) for name, source in _read(PYTHON).items()},
    **{name: native_messages(source, name) for name, source in _read(NATIVE).items()},
    **{name: cmake_messages(source, name) for name, source in _read(CMAKE).items()},
    **{name: shell_messages(source, name) for name, source in _read(SHELL).items()},
}
RAISED = [message for messages in MESSAGES.values() for message in messages if message.error]
TEXTS = [
    *(text for source in _read(PYTHON).values() for text in python_texts(source, CONSTANTS)),
    *(text for source in _read(NATIVE).values() for text in native_texts(source)),
    *(message.text for messages in MESSAGES.values() for message in messages),
]


def named(texts):
    return [(re.sub(r"\W+", "_", text), text) for text in texts]


class OurMessageTest(parameterized.TestCase):
    """docs/troubleshooting.md against the sources, both ways."""

    @parameterized.named_parameters(named(name for name, messages in MESSAGES.items() if messages))
    def test_messages_of_a_file_are_explained(self, name):
        assert unexplained(MESSAGES[name], [*OURS, *CAUGHT]) == []

    def test_entries_are_messages_that_there_are(self):
        assert stale([*OURS, *CAUGHT], TEXTS) == []

    def test_an_entry_fits_one_message_of_python(self):
        assert ambiguous(OURS, RAISED) == []

    def test_an_entry_names_the_exception(self):
        assert without_exception(ENTRIES, RAISED) == []


def _messages_of(source):
    return raised_messages(source, "f.py", python_constants(source))


class MessageCheckerTest(parameterized.TestCase):
    """The checks above see what they must see."""

    @parameterized.parameters(
        "raise ValueError('an invented message')",
        "raise ValueError(f'an invented message about {x}')",
        "TEXT = 'an invented message'\nraise ValueError(TEXT)",
        "TEXT = 'an invented message'\nraise ValueError('why: ' + TEXT)",
        "def f():\n    raise ValueError('an invented message') from error",
    )
    def test_invented_message_is_missed(self, source):
        (missed,) = unexplained(_messages_of(source), OURS)
        assert "an invented message" in missed.text

    @parameterized.parameters("raise ValueError", "raise ValueError(text)", "raise make_error()", "raise error")
    def test_raise_without_a_readable_text_is_refused(self, source):
        with pytest.raises(ValueError, match="raises without a text"):
            _messages_of(source)

    def test_raise_that_passes_an_exception_on_is_no_message(self):
        assert _messages_of("try:\n    f()\nexcept TypeError:\n    raise") == []

    def test_values_are_holes(self):
        source = "N = 'named'\nraise ValueError(f'{a} is {b!r}{c}, ' f'{N} ' + d + '.')"
        assert _messages_of(source) == [Message("ValueError", "… is …, named ….", "f.py:2")]

    @parameterized.parameters(
        'reject(name, buffer, "an invented message that is about " + rule);',
        'throw std::invalid_argument("an invented "\n    "message that has two lines");',
        'return {std::string(stem) + ": an invented message that has no place"};',
        '#error "an invented message of the preprocessor"\nint x;',
    )
    def test_invented_native_message_is_missed(self, source):
        (missed,) = unexplained(native_messages(source, "f.cc"), OURS)
        assert "an invented" in missed.text

    @parameterized.parameters('// "an invented message here"\n', 'f("query", query, "d_query", "row_max");', "x = ';';")
    def test_what_is_no_native_message_is_passed(self, source):
        assert native_messages(source, "f.cc") == []

    def test_invented_message_of_cmake_is_missed(self):
        (missed,) = unexplained(cmake_messages('message(FATAL_ERROR "an invented ${X} "\n  "message")', "f"), OURS)
        assert missed.text == "an invented … message"

    def test_invented_message_of_a_script_is_missed(self):
        (missed,) = unexplained(shell_messages('echo "an invented" \\\n  "message" >&2', "f"), OURS)
        assert missed.text == "an invented message"

    @parameterized.parameters(
        "### `an invented heading`\n\n`ValueError`. Why.",
        "| message | rule |\n|---|---|\n| `an invented heading` | why |",
    )
    def test_invented_entry_is_stale(self, lines):
        (entry,) = entries(f"# Page\n\n## Section\n\n{lines}\n")
        assert stale([entry.quote], TEXTS) == ["an invented heading"]

    def test_quote_of_several_messages_is_ambiguous(self):
        assert ambiguous(["; it must be", "cannot be shared evenly"], RAISED) == ["; it must be"]

    def test_entry_without_its_exception_is_seen(self):
        (entry,) = entries("## Section\n\n### `an invented message`\n\n`TypeError`. Why.\n")
        message = Message("ValueError", "an invented message", "f.py:1")
        assert without_exception([entry], [message]) == ["an invented message"]
        assert without_exception([entry], [message._replace(error="TypeError")]) == []

    def test_heading_that_is_more_than_a_quote_is_no_entry(self):
        assert entries("## Section\n\n### Why `x` is slow\n\nIt is.\n") == []


_QUERY, _KEY = np.ones((2, 5, 4, 8), np.float32), np.ones((2, 7, 2, 8), np.float32)


def _attend(query):
    return dhp_jax.dot_product_attention(query, _KEY, _KEY)


def _export(query, **options):
    return jax.export.export(jax.jit(_attend), disabled_checks=dhp_jax.DISABLE_EXPORT_CHECKS, **options)(query)


def _export_sharded():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    _export(jax.device_put(_QUERY, NamedSharding(mesh, PartitionSpec("x")))).serialize()


def _run_without_registering():
    program = "import jax; jax.ffi.ffi_call('dhp_attention_fwd', jax.ShapeDtypeStruct((), 'float32'))()"
    process = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    if process.returncode:
        raise ChildProcessError(process.stderr)


# What makes JAX say each of the messages that we explain for it.
PROVOKED = {
    "Cannot serialize code with custom calls whose targets have no compatibility guarantees": (
        ValueError,
        lambda: jax.export.export(jax.jit(_attend))(_QUERY),
    ),
    "serialization of host_callbacks is not yet implemented": (NotImplementedError, _export_sharded),
    "was exported for platforms": (ValueError, lambda: _export(_QUERY, platforms=("cuda",)).call(_QUERY)),
    "No FFI handler registered for dhp_attention_fwd": (ChildProcessError, _run_without_registering),
    "can't apply forward-mode autodiff (jvp) to a custom_vjp function": (
        TypeError,
        lambda: jax.jvp(jax.jit(_attend), (_QUERY,), (_QUERY,)),
    ),
}


class MessageOfOthersTest(parameterized.TestCase):
    def test_each_is_provoked_here(self):
        assert set(OTHERS) == set(PROVOKED)

    @parameterized.named_parameters(named(PROVOKED))
    def test_installed_jax_says_it(self, quote):
        error, provoke = PROVOKED[quote]
        with pytest.raises(error, match=re.escape(quote)):
            provoke()


# ---- Code ------------------------------------------------------------------------------------------------------------

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *DOCS.glob("*.md")])
OPTIONAL = ("equinox", "flax")

_BLOCK = re.compile(r"^(?P<indent> *)```python\b[^\n]*\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)


def program(page):
    """The Python blocks of a page as one program, each line at its place in the page."""
    lines = ["" for _ in page.splitlines()]
    for block in _BLOCK.finditer(page):
        first = page.count("\n", 0, block.start("code"))
        code = textwrap.dedent(block["code"]).splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


def missing_packages(code):
    """Those of the optional packages that a program imports and that are not installed."""
    nodes = list(ast.walk(ast.parse(code)))
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    roots = {name.split(".")[0] for name in imported}
    return [name for name in OPTIONAL if name in roots and importlib.util.find_spec(name) is None]


def run(page, name):
    exec(compile(program(page), name, "exec"), {"__name__": name})


class CodeTest(parameterized.TestCase):
    """Every Python block runs, the blocks of a page one after the other."""

    @parameterized.parameters(*(page for page in PAGES if program((ROOT / page).read_text(encoding="utf-8")).strip()))
    def test_blocks_of_a_page_run(self, page):
        text = (ROOT / page).read_text(encoding="utf-8")
        if missing := missing_packages(program(text)):
            self.skipTest(f"{', '.join(missing)} not installed")
        run(text, page)

    @parameterized.parameters(*PAGES)
    def test_no_python_hides_behind_another_name(self, page):
        text = (ROOT / page).read_text(encoding="utf-8")
        others = re.findall(r"^ *```(?!python\b|sh$|\{|$)(.*)$", text, re.MULTILINE)
        assert others == []
        assert len(_BLOCK.findall(text)) == text.count("```python")

    def test_a_block_that_fails_is_seen_with_its_line(self):
        page = "Text.\n\n- item\n\n  ```python\n  x = 1\n  ```\n\n```python\nassert x == 2\n```\n"
        with pytest.raises(AssertionError) as raised:
            run(page, "page.md")
        last = traceback.extract_tb(raised.tb)[-1]
        assert (last.filename, last.lineno) == ("page.md", 10)

    def test_a_package_that_is_not_installed_is_seen(self):
        with unittest.mock.patch.object(importlib.util, "find_spec", return_value=None):
            assert missing_packages("import jax\nfrom flax import nnx") == ["flax"]


# ---- Site ------------------------------------------------------------------------------------------------------------


def build(sources, site):
    """As `make docs`: a warning is an error."""
    command = [sys.executable, "-P", "-m", "sphinx", "-q", "-W", "--keep-going", str(sources), str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C.UTF-8"})


def loads_from_other_hosts(page):
    """The elements of an HTML page that make a browser ask another host; a link does so only when followed."""
    return re.findall(r'<(?!a\b)\w[^>]*\s(?:src|href)="(?:https?:)?//[^>]*>', page)


@functools.cache
def built_site():
    folder = tempfile.TemporaryDirectory()
    return build(DOCS, folder.name), folder


@unittest.skipIf(importlib.util.find_spec("sphinx") is None, "Sphinx is not installed (pip install '.[docs]')")
class SiteTest(parameterized.TestCase):
    def pages(self):
        _, folder = built_site()
        pages = {path.name: path.read_text(encoding="utf-8") for path in pathlib.Path(folder.name).glob("*.html")}
        assert {page.stem for page in DOCS.glob("*.md")} <= {pathlib.Path(name).stem for name in pages}
        return pages

    def test_it_builds_without_a_warning(self):
        process, _ = built_site()
        assert process.returncode == 0, process.stderr

    @parameterized.named_parameters(
        ("link", "[a page](gone.md)", "gone.md"),
        ("name", "{py:func}`dhp_jax.gone`", "dhp_jax.gone"),
        ("docstring", "```{eval-rst}\n.. autofunction:: dhp_jax.gone\n```", "gone"),
    )
    def test_what_is_missing_is_a_warning(self, text, missing):
        with tempfile.TemporaryDirectory() as folder:
            sources = pathlib.Path(folder, "docs")
            sources.mkdir()
            (sources / "conf.py").write_text((DOCS / "conf.py").read_text(encoding="utf-8"))
            (sources / "index.md").write_text(f"# Page\n\n{text}\n")
            process = build(sources, pathlib.Path(folder, "site"))
        assert process.returncode != 0
        assert missing in process.stderr

    @parameterized.parameters(*dhp_jax.__all__)
    def test_every_public_name_has_an_entry(self, name):
        assert f'id="dhp_jax.{name}"' in self.pages()["api.html"]

    def test_a_reader_loads_nothing_from_another_host(self):
        assert [name for name, page in self.pages().items() if loads_from_other_hosts(page)] == []

    def test_a_script_from_another_host_is_seen(self):
        assert loads_from_other_hosts('<p>\n<script async src="https://host.invalid/x.js"></script>')
        assert not loads_from_other_hosts('<script src="_static/x.js"></script> <a href="https://host.invalid">x</a>')
