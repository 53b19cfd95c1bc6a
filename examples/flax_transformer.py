"""Trains a small transformer with constant-time attention, then lets it write with a cache of secret length.

    python examples/flax_transformer.py            # under three minutes on two CPU cores
    python examples/flax_transformer.py --short    # under one minute
    python examples/flax_transformer.py --compare  # trains once more, with jax.nn.dot_product_attention

The model learns from Python's own standard library. The run fails (exit status 1) unless the model beats a
bigram model and itself without attention on files that it has not seen, and unless generation with the cache
gives the logits of one pass over the whole text. It prints how many tokens a second it writes, and how many with
JAX's own attention over the same cache. `--short` checks the same claims, the first two with a
smaller margin; `--compare` also checks that JAX's own attention gives the same losses.

The modules beside this one, in reading order: `transformer_model` (the model and its cache), `oblivious`
(indexing that hides the index), `generation`, `corpus` (the text), `training` and `loss_plot`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from corpus import VOCAB_SIZE, bigram_loss, decode, encode, load_corpus
from flax import nnx
from generation import Continuation, Prompts, cache_error, generate, join_texts, pad_prompts, tokens_per_second
from loss_plot import save_loss_plot
from training import LossCurve, TrainingConfig, held_out_windows, train
from transformer_model import Transformer, TransformerConfig, fastest_of_jax

import dhp_jax

flags.DEFINE_integer("layers", 2, "Number of layers.", lower_bound=1)
flags.DEFINE_integer("d_model", 128, "Channels of the residual stream.", lower_bound=1)
flags.DEFINE_integer("heads", 4, "Query heads; a multiple of --kv_heads.", lower_bound=1)
flags.DEFINE_integer("kv_heads", 2, "Key/value heads.", lower_bound=1)
flags.DEFINE_integer("head_dim", 32, "Channels per head; even.", lower_bound=2)
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Activations; by default bfloat16 on a GPU only.")
flags.DEFINE_integer("seq_len", 128, "Tokens that the model sees at once.", lower_bound=2)
flags.DEFINE_integer("batch_size", 8, "Sequences per training step.", lower_bound=1)
flags.DEFINE_integer("steps", 800, "Training steps.", lower_bound=10)
flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate.", lower_bound=0.0)
flags.DEFINE_integer("seed", 0, "Seed of the parameters, of the order of the data and of the sampling.")
flags.DEFINE_integer("generate", 96, "Tokens to generate after each prompt.", lower_bound=1)
flags.DEFINE_float("temperature", 0.6, "Of the sampling; lower is more predictable.", lower_bound=1e-3)
flags.DEFINE_string("out", "out", "Folder for the plot of the loss.")
flags.DEFINE_bool("compare", False, "Also train with jax.nn.dot_product_attention and compare the curves.")
flags.DEFINE_bool("short", False, "A run for continuous integration: 150 steps and a smaller margin.")
FLAGS = flags.FLAGS

PROMPTS = (
    b"def main(",
    b"    def __init__(self, ",
    b"        if not isinstance(",
    b"    with open(filename) as file:\n        ",
)
# Their lengths in tokens are secret; that none is longer than this is public.
MAX_PROMPT = 32

SPEED_RUNS = 11  # of which the median counts

# How far below each baseline the held-out loss must be, in nats per token.
MARGIN, SHORT_MARGIN = 0.5, 0.1

# How far apart two ways to compute the same number may be: rounding, by the type of the activations.
LOGIT_TOLERANCE = {"float32": 0.05, "bfloat16": 0.5}
CURVE_TOLERANCE = {"float32": 0.01, "bfloat16": 0.2}


def shorten() -> None:
    """Applies --short to the flags that were not given."""
    FLAGS.set_default("steps", 150)


def dtype_name() -> str:
    """Returns the type of the activations."""
    return FLAGS.dtype or ("bfloat16" if jax.default_backend() == "gpu" else "float32")


def model_config() -> TransformerConfig:
    """Returns the model that the flags describe, with the attention of `dhp_jax`."""
    return TransformerConfig(
        attention=dhp_jax.dot_product_attention,
        num_layers=FLAGS.layers,
        d_model=FLAGS.d_model,
        num_heads=FLAGS.heads,
        num_kv_heads=FLAGS.kv_heads,
        head_dim=FLAGS.head_dim,
        vocab_size=VOCAB_SIZE,
        dtype=jnp.dtype(dtype_name()),
    )


def with_attention_of_jax(model: Transformer) -> Transformer:
    """Returns a model with the same parameters and the attention of JAX, the fastest that there is for the device."""
    attend = fastest_of_jax(model.config.dtype)

    def decode(cache: dhp_jax.KVCache, query: jax.Array) -> jax.Array:
        return attend(query, cache.key, cache.value, key_value_seq_lengths=cache.length)

    theirs = Transformer(dataclasses.replace(model.config, attention=attend, decode=decode), nnx.Rngs(0))
    nnx.update(theirs, nnx.state(model))
    return theirs


def training_config() -> TrainingConfig:
    """Returns the training that the flags describe."""
    return TrainingConfig(
        steps=FLAGS.steps,
        batch_size=FLAGS.batch_size,
        seq_len=FLAGS.seq_len,
        learning_rate=FLAGS.learning_rate,
        seed=FLAGS.seed,
    )


def report(claim: str, holds: bool) -> bool:
    """Prints whether `claim` holds, and returns it."""
    print("PASS" if holds else "FAIL", claim, sep="  ")
    return holds


def check_baselines(loss: float, baselines: dict[str, float]) -> bool:
    """Checks that the held-out loss is well below that of every baseline, by its label."""
    required = SHORT_MARGIN if FLAGS.short else MARGIN

    def check(label: str, margin: float) -> bool:
        claim = f"{margin:.3f} nats per token below the {label} (required: {required:g})"
        return report(claim, margin >= required)

    return all([check(label, baseline - loss) for label, baseline in baselines.items()])


def check_curves(curve: LossCurve, reference: LossCurve) -> bool:
    """Checks that two runs had the same losses, in training and on the held-out files, up to rounding."""
    losses, expected = ([*run.train, *run.held_out.values()] for run in (curve, reference))
    difference = float(np.abs(np.subtract(losses, expected)).max())
    tolerance = CURVE_TOLERANCE[dtype_name()]
    claim = f"losses within {difference:.2g} of those with JAX's attention (allowed: {tolerance:g})"
    return report(claim, difference <= tolerance)


def check_cache(model: Transformer, prompts: Prompts, continuation: Continuation) -> bool:
    """Checks that the cache gave the logits of one pass over the whole text, up to rounding."""
    error = cache_error(model, prompts, continuation)
    tolerance = LOGIT_TOLERANCE[dtype_name()]
    claim = f"cached logits within {error:.2g} of those of one full pass (allowed: {tolerance:g})"
    return report(claim, error <= tolerance)


def report_speed(model: Transformer, prompts: Prompts) -> None:
    """Prints how fast the model writes, and how fast it would with JAX's attention."""
    models = {"dhp_jax": model, "jax.nn": with_attention_of_jax(model)}
    measured = tokens_per_second(list(models.values()), prompts, FLAGS.generate, SPEED_RUNS)
    for name, rates in zip(models, measured, strict=True):
        low, middle, high = np.quantile(rates, (0, 0.5, 1))
        told = f"{low:.0f} to {high:.0f} in {SPEED_RUNS} runs"
        print(f"{middle:.0f} tokens a second with the attention of {name}, {told}")


def show_texts(prompts: Prompts, continuation: Continuation) -> None:
    """Prints each prompt with its continuation."""
    num_tokens = continuation.tokens.shape[1]
    for text, length in zip(join_texts(prompts, continuation), prompts.length, strict=True):
        source = decode(text[: length + num_tokens].astype(np.uint8).tobytes())
        print(f"\n--- {num_tokens} tokens after a prompt of {length} ---\n{source.decode(errors='replace')}")
    print()


def main(argv: Sequence[str]) -> int:
    """Trains, measures and generates; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    # JAX would announce every kind of device that it did not find.
    logging.set_verbosity(logging.WARNING)
    if FLAGS.short:
        shorten()
    corpus, config, ours = load_corpus(), training_config(), model_config()

    model, curve = train(ours, config, corpus, "dhp_jax")
    _, blind_curve = train(dataclasses.replace(ours, attention_gain=0.0), config, corpus, "no attention")
    curves = {"dhp_jax": curve}
    if FLAGS.compare:
        theirs = dataclasses.replace(ours, attention=jax.nn.dot_product_attention)
        _, curves["jax.nn"] = train(theirs, config, corpus, "jax.nn")
    bigram = bigram_loss(corpus.train, held_out_windows(corpus, config))
    baselines = {"bigram model": bigram, "model without attention": blind_curve.final}
    save_loss_plot(Path(FLAGS.out) / "loss.png", curves, baselines)

    prompts = pad_prompts([encode(source) for source in PROMPTS], num_rows=MAX_PROMPT)
    continuation = generate(model, prompts, jax.random.key(FLAGS.seed), FLAGS.temperature, FLAGS.generate)
    show_texts(prompts, continuation)

    report_speed(model, prompts)
    print(f"held-out loss: {curve.final:.3f} nats per token")
    holds = [check_baselines(curve.final, baselines), check_cache(model, prompts, continuation)]
    if FLAGS.compare:
        holds.append(check_curves(curve, curves["jax.nn"]))
    return 0 if all(holds) else 1


if __name__ == "__main__":
    app.run(main)
