"""Training: next-token cross-entropy, AdamW, linear warm-up and cosine decay."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
from corpus import Corpus, random_windows, spaced_windows
from flax import nnx
from jax import Array
from tqdm import tqdm
from transformer_model import Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train.

    Attributes:
        seq_len: tokens that the model sees at once, T.
        measure_every: steps between two measurements of the held-out loss.
        held_out_batches: number of batches that the held-out loss averages over.
        seed: of the parameters and of the order of the data.
    """

    steps: int
    batch_size: int
    seq_len: int
    learning_rate: float
    seed: int
    measure_every: int = 40
    held_out_batches: int = 8


@dataclasses.dataclass
class LossCurve:
    """The losses of one training run, in nats per token.

    Attributes:
        train: the loss of each step's batch.
        held_out: the held-out loss, by the number of steps taken before it was measured.
    """

    train: list[float] = dataclasses.field(default_factory=list)
    held_out: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def final(self) -> float:
        """The held-out loss after the last step."""
        return self.held_out[max(self.held_out)]


def held_out_windows(corpus: Corpus, config: TrainingConfig) -> np.ndarray:
    """Returns the windows on which every held-out loss is measured, int32 [number of batches, B, T + 1]."""
    number, length = config.held_out_batches * config.batch_size, config.seq_len + 1
    return spaced_windows(corpus.held_out, number, length).reshape(-1, config.batch_size, length)


def next_token_loss(model: Transformer, windows: Array) -> Array:
    """Returns the mean cross-entropy of tokens 1 to T of `windows` [B, T + 1], given the tokens before."""
    logits, _ = model(windows[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]))


@nnx.jit
def train_step(model: Transformer, optimizer: nnx.Optimizer, windows: Array) -> Array:
    """Updates the model in place by one step on `windows` [B, T + 1] and returns the loss before it."""
    loss, gradients = nnx.value_and_grad(next_token_loss)(model, windows)
    optimizer.update(model, gradients)
    return loss


batch_loss = nnx.jit(next_token_loss)


def measure_loss(model: Transformer, batches: np.ndarray) -> float:
    """Returns the mean loss on `batches` of windows, int [number of batches, B, T + 1]."""
    return float(np.mean([batch_loss(model, batch) for batch in batches]))


def make_optimizer(model: Transformer, config: TrainingConfig) -> nnx.Optimizer:
    """Returns AdamW with clipped gradients and a learning rate that warms up and then falls to a tenth."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.steps // 10,
        decay_steps=config.steps,
        end_value=config.learning_rate / 10,
    )
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.1))
    return nnx.Optimizer(model, transform, wrt=nnx.Param)


def train(
    model_config: TransformerConfig, config: TrainingConfig, corpus: Corpus, label: str
) -> tuple[Transformer, LossCurve]:
    """Trains a new model; equal seeds give equal initial parameters and equal batches.

    Args:
        model_config: the model.
        config: the training.
        corpus: the text to learn from and to measure on.
        label: what the progress bar calls this run.

    Returns:
        The trained model and its losses.
    """
    model = Transformer(model_config, nnx.Rngs(config.seed))
    optimizer = make_optimizer(model, config)
    rng = np.random.default_rng(config.seed)
    measured_on = held_out_windows(corpus, config)
    curve = LossCurve(held_out={0: measure_loss(model, measured_on)})
    tokens_per_step = config.batch_size * config.seq_len
    with tqdm(total=config.steps * tokens_per_step, desc=label, unit=" tokens", unit_scale=True) as bar:
        for step in range(1, config.steps + 1):
            windows = random_windows(corpus.train, rng, config.batch_size, config.seq_len + 1)
            curve.train.append(float(train_step(model, optimizer, windows)))
            if step % config.measure_every == 0 or step == config.steps:
                curve.held_out[step] = measure_loss(model, measured_on)
            bar.update(tokens_per_step)
            bar.set_postfix(loss=f"{curve.train[-1]:.3f}", held_out=f"{curve.final:.3f}", refresh=False)
    return model, curve
