"""What the documents show works: README's lines run, and every file that a document names is there."""

import pathlib
import re

from absl.testing import parameterized

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("cuda/*.md")])

_LINK = re.compile(r"\]\(([^)#]+)\)")
_NAMED_FILE = re.compile(r"`((?:cuda|dhp_jax|tests|examples|benchmarks|build_backend)/[\w/.-]+)`")


def missing_files(text):
    return [name for name in [*_LINK.findall(text), *_NAMED_FILE.findall(text)] if not (ROOT / name).exists()]


class DocumentTest(parameterized.TestCase):
    @parameterized.parameters(*DOCUMENTS)
    def test_files_that_it_names_exist(self, document):
        assert not missing_files((ROOT / document).read_text(encoding="utf-8"))

    def test_missing_file_is_seen(self):
        assert missing_files("[a](gone.md) and `cuda/gone.h`, [b](README.md)") == ["gone.md", "cuda/gone.h"]

    def test_lines_of_readme_run(self):
        (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        names = {}
        exec(lines, names)
        assert names["out"].shape == (2, 128, 8, 64)
