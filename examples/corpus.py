"""The text to learn: Python's own standard library, one token per byte and one per indentation.

A fifth of those files are spaces at the start of a line; as one token each, they leave the small model more
room in its sight for the rest.
"""

import dataclasses
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np

VOCAB_SIZE = 256

# Four spaces at the start of a line, k = 1 to 16 times, are token 15 + k, a control character not in use.
NO_INDENTATION = 15


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Text as tokens, uint8 [number of tokens], split by file.

    Attributes:
        train: the files to learn from, end to end.
        held_out: the files to measure on, end to end.
    """

    train: np.ndarray
    held_out: np.ndarray


def encode(source: bytes) -> bytes:
    """Returns the tokens of `source`."""
    indentation = re.compile(rb"^(?: {4}){1,16}", re.MULTILINE)
    return indentation.sub(lambda match: bytes([NO_INDENTATION + len(match[0]) // 4]), source)


def decode(tokens: bytes) -> bytes:
    """Returns the text that `tokens` stand for."""
    return re.sub(rb"[\x10-\x1f]", lambda match: b"    " * (match[0][0] - NO_INDENTATION), tokens)


def standard_library_files() -> list[Path]:
    """Returns the public top-level modules in the order of their names.

    Names that start with an underscore are left out: some of those files are generated for one machine.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))


def load_corpus(held_out_every: int = 10) -> Corpus:
    """Reads the standard library and holds one file in `held_out_every` out."""
    files = standard_library_files()
    held_out = files[::held_out_every]
    return Corpus(train=_read([path for path in files if path not in held_out]), held_out=_read(held_out))


def _read(files: Sequence[Path]) -> np.ndarray:
    """Returns the tokens of `files` end to end, uint8 [number of tokens]."""
    return np.frombuffer(encode(b"".join(path.read_bytes() for path in files)), np.uint8)


def random_windows(text: np.ndarray, rng: np.random.Generator, number: int, length: int) -> np.ndarray:
    """Cuts `number` windows of `length` tokens out of `text` at random, int32 [number, length]."""
    starts = rng.integers(text.size - length + 1, size=number)
    return text[starts[:, None] + np.arange(length)].astype(np.int32)


def spaced_windows(text: np.ndarray, number: int, length: int) -> np.ndarray:
    """Cuts `number` windows of `length` tokens out of `text` at even distances, int32 [number, length]."""
    starts = np.linspace(0, text.size - length, number).astype(int)
    return text[starts[:, None] + np.arange(length)].astype(np.int32)


def bigram_loss(text: np.ndarray, windows: np.ndarray) -> float:
    """Measures the add-one-smoothed bigram model of `text`.

    Args:
        text: what the model counts its pairs of tokens in, uint8 [number of tokens].
        windows: what it is measured on, int [..., T + 1].

    Returns:
        The mean cross-entropy of tokens 1 to T of `windows`, in nats per token.
    """
    pairs = text[:-1].astype(int) * VOCAB_SIZE + text[1:]
    counts = np.bincount(pairs, minlength=VOCAB_SIZE**2).reshape(VOCAB_SIZE, VOCAB_SIZE) + 1
    log_probability = np.log(counts / counts.sum(axis=1, keepdims=True))
    return float(-log_probability[windows[..., :-1], windows[..., 1:]].mean())
