"""Reads messages out of the sources that raise them, and out of the page that explains them.

The text of a message is what is constant in it, with `…` for each value: "dot_product_attention: … has dtype …; ...".
"""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

HOLE = "…"


class Message(NamedTuple):
    error: str  # the exception, as the source names it; empty where the source does not say
    text: str
    place: str


class Entry(NamedTuple):
    """A quoted piece of a message, and what the page says below it; empty for a row of a table."""

    quote: str
    explanation: str
    section: str


def python_constants(source: str) -> dict[str, ast.expr]:
    """What the names that a module assigns to at its outermost level stand for."""
    assignments = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return {target.id: node.value for node in assignments for target in node.targets if isinstance(target, ast.Name)}


def raised_messages(source: str, name: str, constants: dict[str, ast.expr]) -> list[Message]:
    """One for each `raise` of a Python module, but for one that passes an exception on as it is."""
    messages = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        text = _text(node.exc.args[0], constants) if isinstance(node.exc, ast.Call) and node.exc.args else ""
        place = f"{name}:{node.lineno}"
        if not re.search(r"\w", text):
            raise ValueError(f"{place} raises without a text that can be read here; write it where it is raised.")
        messages.append(Message(ast.unparse(node.exc.func), text, place))
    return messages


def python_texts(source: str, constants: dict[str, ast.expr]) -> list[str]:
    """Every string of a Python module."""
    nodes = ast.walk(ast.parse(source))
    return [_text(node, constants) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)]


def _text(node: ast.expr, constants: dict[str, ast.expr]) -> str:
    def read(node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(map(read, parts))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return read(left) + read(right)
            case ast.FormattedValue(value=ast.Name() as name, conversion=-1) | (ast.Name() as name):
                return read(constants[name.id]) if name.id in constants else HOLE
            case _:
                return HOLE

    return _merge_holes(read(node))


_CPP_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)|"(?P<text>(?:[^"\\\n]|\\.)*)"|'(?:[^'\\\n]|\\.)*'|(?P<end>[;{}])|\s+|.""",
    re.DOTALL,
)
_PREPROCESSOR_LINE = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_FEWEST_WORDS = 5  # of a message; shorter texts are names, lists and parts of a sentence


def native_messages(source: str, name: str) -> list[Message]:
    """One for each C++ statement that holds a sentence."""
    return [Message("", text, name) for words, text in _statements(source) if words >= _FEWEST_WORDS]


def native_texts(source: str) -> list[str]:
    """The strings of each C++ statement, joined."""
    return [text for _, text in _statements(source)]


def _statements(source: str) -> Iterator[tuple[int, str]]:
    """(how many words its strings of several words have, its text) of each statement that has a string."""
    parts: list[str] = []
    strings: list[str] = []
    for token in _CPP_TOKEN.finditer(_PREPROCESSOR_LINE.sub(r"\g<0>;", source)):
        if token["text"] is not None:
            parts.append(token["text"])
            strings.append(token["text"])
        elif token["end"]:
            if strings:
                yield (
                    sum(len(re.findall(r"[A-Za-z]{2,}", text)) for text in strings if " " in text),
                    _merge_holes("".join(parts)),
                )
            parts, strings = [], []
        elif not token["comment"] and not token[0].isspace():
            parts.append(HOLE)


def cmake_messages(source: str, name: str) -> list[Message]:
    """One for each fatal error of a CMake file."""
    errors = re.findall(r'message\(FATAL_ERROR\s+((?:"[^"]*"\s*)+)\)', source)
    texts = ("".join(re.findall(r'"([^"]*)"', strings)) for strings in errors)
    return [Message("", _merge_holes(re.sub(r"\$\{\w+\}", HOLE, text)), name) for text in texts]


def shell_messages(source: str, name: str) -> list[Message]:
    """One for each text that a script writes to where errors go."""
    said = re.findall(r'echo ((?:"[^"]*"\s*\\?\s*)+)>&2', source)
    return [Message("", " ".join(re.findall(r'"([^"]*)"', strings)), name) for strings in said]


def _merge_holes(text: str) -> str:
    return re.sub(f"{HOLE}+", HOLE, text)


_SECTION = re.compile(r"^## (.*)$", re.MULTILINE)
_HEADED = re.compile(r"^### `([^`]+)`$(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


def entries(page: str) -> list[Entry]:
    """What the page quotes: each heading or first cell of a row that is code and nothing else."""
    _, *sections = _SECTION.split(page)
    found = []
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        found += [Entry(quote, explanation.strip(), title) for quote, explanation in _HEADED.findall(body)]
        found += [Entry(quote, "", title) for quote in _ROW.findall(body)]
    return found


def unexplained(messages: list[Message], quotes: list[str]) -> list[Message]:
    """The messages that no quote is a piece of."""
    return [message for message in messages if not any(quote in message.text for quote in quotes)]


def stale(quotes: list[str], texts: list[str]) -> list[str]:
    """The quotes that are a piece of no text."""
    return [quote for quote in quotes if not any(quote in text for text in texts)]


def ambiguous(quotes: list[str], messages: list[Message]) -> list[str]:
    """The quotes that are a piece of more than one text, and so do not tell a reader which."""
    return [quote for quote in quotes if len({message.text for message in messages if quote in message.text}) > 1]


def without_exception(entries: list[Entry], messages: list[Message]) -> list[str]:
    """The quotes of the entries that do not name the exception of their message."""
    return [
        entry.quote
        for entry in entries
        for message in messages
        if entry.quote in message.text and f"`{message.error}`" not in entry.explanation
    ]
