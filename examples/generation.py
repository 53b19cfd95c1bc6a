"""Text generation that hides how long the text is.

Every prompt is padded to one public length and every cache has one public number of rows, so neither the
shapes nor the number of steps nor the addresses say how long a text really is. Attention must be told, so as
to leave out the rows that are not in use; with `dhp_jax`, its execution does not depend on what it was told.

A step takes the memory of the caches that it was given for those that it returns (`donate_argnames`).
"""

import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oblivious
from flax import nnx
from jax import Array
from transformer_model import Caches, Transformer


class Prompts(NamedTuple):
    """Texts to continue.

    Attributes:
        tokens: the texts from their first token on, padded with zeros, int32 [B, S].
        length: the secret number of tokens before the padding, int32 [B].
    """

    tokens: np.ndarray
    length: np.ndarray


class Continuation(NamedTuple):
    """What a model wrote after its prompts.

    Attributes:
        tokens: int [B, T].
        logits: those that each token was drawn from, float32 [B, T, V].
    """

    tokens: Array
    logits: Array


# The logits [B, V] of the next token, and the caches of the text before it.
State = tuple[Array, Caches]


def pad_prompts(texts: Sequence[bytes], num_rows: int) -> Prompts:
    """Pads `texts`, one token per byte, to `num_rows` tokens each."""
    padded = b"".join(text.ljust(num_rows, b"\0") for text in texts)
    tokens = np.frombuffer(padded, np.uint8).reshape(len(texts), num_rows)
    return Prompts(tokens.astype(np.int32), np.array([len(text) for text in texts], np.int32))


@functools.partial(nnx.jit, static_argnames="num_rows")
def read_prompts(model: Transformer, prompts: Prompts, num_rows: int) -> State:
    """Returns what comes after `prompts`, in caches that have room for `num_rows` tokens."""
    logits, caches = model(prompts.tokens, model.create_caches(len(prompts.length), num_rows))
    # No row of the prompt looked at the padding, which comes after it; the rows of the padding are now free.
    caches = [cache.truncate(prompts.length) for cache in caches]
    return oblivious.read_row(logits, prompts.length - 1), caches


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="state")
def write_token(
    graph: nnx.GraphDef, parameters: nnx.State, state: State, key: Array, temperature: float
) -> tuple[State, Continuation]:
    """Samples one token after each text."""
    logits, caches = state
    # Draws by adding noise and taking the maximum over all V logits: no index into a cumulative sum.
    token = jax.random.categorical(key, logits / temperature)
    next_logits, caches = nnx.merge(graph, parameters)(token[:, None], caches)
    return (next_logits[:, 0], caches), Continuation(token, logits)


def generate(model: Transformer, prompts: Prompts, key: Array, temperature: float, num_tokens: int) -> Continuation:
    """Samples `num_tokens` tokens after each of `prompts`."""
    # Split once, so that a step need not look through the model.
    graph, parameters = nnx.split(model)
    state = read_prompts(model, prompts, prompts.tokens.shape[1] + num_tokens)
    steps = []
    for step_key in jax.random.split(key, num_tokens):
        state, step = write_token(graph, parameters, state, step_key, temperature)
        steps.append(step)
    return jax.tree.map(lambda *arrays: jnp.stack(arrays, axis=1), *steps)


def tokens_per_second(models: Sequence[Transformer], prompts: Prompts, num_tokens: int, runs: int) -> np.ndarray:
    """Measures `generate` of each model, all prompts together, in turn and once it is compiled: [models, runs]."""
    seconds = np.zeros((len(models), runs + 1))  # the first run compiles
    for run in range(runs + 1):
        for index, model in enumerate(models):
            start = time.perf_counter()
            jax.block_until_ready(generate(model, prompts, jax.random.key(run), 1.0, num_tokens))
            seconds[index, run] = time.perf_counter() - start
    return len(prompts.length) * num_tokens / seconds[:, 1:]


def join_texts(prompts: Prompts, continuation: Continuation) -> np.ndarray:
    """Returns each prompt with its continuation in the place of its padding, int32 [B, S].

    For those who may know the lengths: they decide here which addresses are written.
    """
    written = np.asarray(continuation.tokens)
    texts = np.pad(prompts.tokens, ((0, 0), (0, written.shape[1])))
    for text, length, tokens in zip(texts, prompts.length, written, strict=True):
        text[length : length + tokens.size] = tokens
    return texts


def cache_error(model: Transformer, prompts: Prompts, continuation: Continuation) -> float:
    """Returns the largest difference between the logits with the cache and without.

    Without the cache means: from one pass over the finished texts.
    """
    logits, _ = nnx.jit(Transformer.__call__)(model, join_texts(prompts, continuation))
    num_tokens = continuation.tokens.shape[1]
    drawn_after = prompts.length[:, None] - 1 + np.arange(num_tokens)
    expected = np.take_along_axis(np.asarray(logits), drawn_after[:, :, None], axis=1)
    return float(np.abs(expected - np.asarray(continuation.logits)).max())
