"""Named attention calls that benchmarks time.

B batch, T query positions, S key positions, N query heads, K key/value heads, D channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

_TOKENS = 16384  # B times S in the grid
_HEADS = {64: 32, 128: 16, 256: 8}  # N in the grid: 2048 channels in all

# One H200 (NVIDIA's data sheet; 16 exponentials a clock and SM at 1.755 GHz).
PEAK_FLOPS = 989e12
EXPONENTIALS_PER_SECOND = 3.707e12
BYTES_PER_SECOND = 4.8e12


@dataclasses.dataclass(frozen=True)
class Shape:
    """One call.

    Attributes:
        group: what it is in the tables for.
        B, T, S, N, K, D: sizes.
        is_causal: as in dot_product_attention.
        gradient: whether the backward pass is timed, and not the forward.
        lengths: whether true lengths of the keys are given, all of them S.
        dtype: of query, key and value.
        target_us: what an earlier design was to reach on an H100, in microseconds; None without a target.
        label: a name instead of the sizes, such as that of a model.
    """

    group: str
    B: int
    T: int
    S: int
    N: int
    K: int
    D: int
    is_causal: bool = False
    gradient: bool = False
    lengths: bool = False
    dtype: str = "bfloat16"
    target_us: float | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """What the tables call it; unique."""
        heads = f"N={self.N}" if self.N == self.K else f"N={self.N} K={self.K}"
        length = f"S={self.S}" if self.T == self.S else f"T={self.T} S={self.S}"
        sizes = f"B={self.B} {length} {heads} D={self.D} {'causal' if self.is_causal else 'full'}"
        dtype, which = "" if self.dtype == "bfloat16" else self.dtype, "bwd" if self.gradient else "fwd"
        return " ".join(filter(None, [self.label, dtype, sizes, "lengths" if self.lengths else "", which]))

    @property
    def operations(self) -> float:
        """4 B N T S D forward, half of it where causal; a backward pass counts 2.5 times as many, whatever is done."""
        forward = 4.0 * self.B * self.N * self.T * self.S * self.D / (2 if self.is_causal else 1)
        return forward * (2.5 if self.gradient else 1)

    @property
    def array_bytes(self) -> float:
        """Of query, key, value and out, each once."""
        size = 4 if self.dtype == "float32" else 2
        return 2.0 * self.B * self.D * size * (self.T * self.N + self.S * self.K)

    @property
    def floor_seconds(self) -> float:
        """The least time of a forward call: products, exponentials and memory, each perfect, all at once."""
        scores = self.B * self.N * self.T * self.S / (2 if self.is_causal else 1)
        passes = 2.5 if self.gradient else 1
        products = self.operations / PEAK_FLOPS
        return max(products, scores / EXPONENTIALS_PER_SECOND, passes * self.array_bytes / BYTES_PER_SECOND)


def _square(group: str, b: int, s: int, n: int, d: int, k: int | None = None, **options: object) -> Shape:
    return Shape(group, b, s, s, n, n if k is None else k, d, **options)  # type: ignore[arg-type]


def _grid() -> Iterator[Shape]:
    for gradient in (False, True):
        for channels, heads in _HEADS.items():
            for length in (2048, 8192) if gradient else (512, 2048, 8192, 16384):
                for is_causal in (False, True):
                    batch = _TOKENS // length
                    yield _square("grid", batch, length, heads, channels, is_causal=is_causal, gradient=gradient)


def _acceptance() -> Iterator[Shape]:
    for b, n, s, d, target in (
        (1, 8, 512, 64, 5.0),
        (1, 8, 512, 128, 8.0),
        (1, 16, 1024, 64, 10.0),
        (1, 32, 2048, 64, 20.0),  # below the floor: no kernel can
        (4, 16, 1024, 64, 29.1),  # 590 TFLOP/s, as the next two
        (2, 16, 8192, 64, 932.0),
        (2, 16, 8192, 128, 1864.0),
    ):
        yield _square("acceptance", b, s, n, d, dtype="float16", target_us=target)


def _latency() -> Iterator[Shape]:
    for heads, length, channels in ((8, 512, 64), (8, 512, 128), (16, 1024, 64), (32, 2048, 64)):
        for is_causal in (False, True):
            yield _square("latency", 1, length, heads, channels, is_causal=is_causal)


def _decode() -> Iterator[Shape]:
    for length in (4096, 32768):
        for batch in (1, 16, 64):
            yield Shape("decode", batch, 1, length, 32, 8, 128)


def _models() -> Iterator[Shape]:
    for label, b, s, n, k, d in (
        ("GPT-2", 1, 512, 12, 12, 64),
        ("GPT-3", 1, 2048, 96, 96, 128),
        ("LLaMA-8B prefill", 1, 4096, 32, 8, 128),
        ("LLaMA-8B prefill", 1, 16384, 32, 8, 128),
        ("LLaMA-70B prefill", 1, 4096, 64, 8, 128),
    ):
        yield _square("models", b, s, n, d, k, is_causal=True, label=label)


def _float32() -> Iterator[Shape]:
    for gradient in (False, True):
        for is_causal in (False, True):
            yield _square("float32", 8, 2048, 32, 64, is_causal=is_causal, gradient=gradient, dtype="float32")


def _variants() -> Iterator[Shape]:
    """What is to cost no more than cells of the grid: grouped heads, other widths, float16, true lengths."""
    for is_causal in (False, True):
        for key_heads in (64, 8):
            yield _square("variants", 1, 8192, 64, 128, key_heads, is_causal=is_causal)
        for channels, heads in ((96, 16), (192, 8)):
            yield _square("variants", 2, 8192, heads, channels, is_causal=is_causal)
        for channels, heads in _HEADS.items():
            if channels != 128 or is_causal:  # else it is a shape of acceptance
                yield _square("variants", 2, 8192, heads, channels, is_causal=is_causal, dtype="float16")
            yield _square("variants", 2, 8192, heads, channels, is_causal=is_causal, lengths=True)


_MAKERS = (_acceptance, _latency, _decode, _grid, _models, _float32, _variants)
SHAPES = {shape.name: shape for make in _MAKERS for shape in make()}
GROUPS = tuple(dict.fromkeys(shape.group for shape in SHAPES.values()))
QUICK = (
    "float16 B=1 S=512 N=8 D=64 full fwd",
    "B=16 T=1 S=4096 N=32 K=8 D=128 full fwd",
    "B=8 S=2048 N=16 D=128 causal fwd",
)
