"""What examples/verify_other_kernels.md shows of its CUDA kernels is what the verifier says of them."""

import functools
import pathlib
import re
import tempfile

import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import policy, text, verify_image

_PAGE = (zoo.ROOT / "examples" / "verify_other_kernels.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FOLDER = re.compile(r"(?<= )/\S*/")
_OMITTED = "..."


def blocks(language, heading):
    """The blocks of a section in some language; what was printed has none."""
    _, section = _PAGE.split(f"\n## {heading}\n")
    return [body for found, body in _BLOCK.findall(section.split("\n## ")[0]) if found == language]


_CUDA = "A CUDA kernel that rescales lazily"
(_SOURCE,) = blocks("cuda", _CUDA)
_SHOWN, _SHOWN_UNDER_POLICY = blocks("", _CUDA)
(_POLICY,) = [block for block in blocks("", "A flash attention in Triton") if block.startswith("[[kernel]]")]


def shows(shown, said):
    """Whether some text is what was said, line by line; `...` stands for any number of lines."""
    lines = [r"(?:.*\n)*?" if line.strip() == _OMITTED else f"{re.escape(line)}\n" for line in shown.splitlines()]
    return re.fullmatch("".join(lines), said) is not None


class PageTest(parameterized.TestCase):
    @functools.cached_property
    def cubin(self):
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "lazy.cu")
            source.write_text(_SOURCE, encoding="utf-8")
            return zoo.cubin(source, "sm_90a")

    def said(self, policies=None):
        reports = verify_image(self.cubin, policies)
        made_by = re.search(r"ptxas ([\d.]+)", _SHOWN)[1]
        if {report.ptxas for report in reports} != {made_by}:
            pytest.skip(f"the page shows what ptxas {made_by} makes")
        return _FOLDER.sub("", text.render(reports))

    def test_what_is_said_without_a_policy(self):
        said = self.said()
        assert shows(_SHOWN, said), said

    def test_what_is_said_under_the_policy(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "guarded.toml")
            path.write_text(_POLICY, encoding="utf-8")
            said = self.said(policy.read(path))
        assert shows(_SHOWN_UNDER_POLICY, said), said

    @parameterized.parameters(
        ("a\nb\n", "a\nb\n", True),
        ("a\n...\nc\n", "a\nb\nc\n", True),
        ("a\n...\na\nc\n", "a\na\nb\na\nc\n", True),
        ("a\nc\n", "a\nb\nc\n", False),
        ("a\n", "a\nb\n", False),
        ("b\na\n", "a\nb\n", False),
        ("a\n...\nd\n", "a\nb\nc\n", False),
    )
    def test_other_words_are_seen(self, shown, said, expected):
        assert shows(shown, said) == expected
