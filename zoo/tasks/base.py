"""What the training loop asks of a task."""

import abc
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import jax

    from zoo.data.source import Source

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """What a model must know of a task.

    Attributes:
      inputs: "tokens" (integers), "scalars" (one real number a position), "series" (N real numbers a position) or
        "image" (integers on a grid, with channels).
      vocab_size: number of token ids, the padding id 0 included; None for scalars.
      num_classes: C; of a task that asks for tokens the number of their ids, as `vocab_size`.
      max_len: length that every sequence is padded or cut to; of images the number of rows.
      pairs: the inputs are two sequences side by side, [B, T, 2], and the label is that of the pair.
      output: what is asked for: one "label" for each sequence (a classifier answers), after each position the "token"
        that comes next (a causal language model answers), the rows of the "series" that follow (a forecaster does), or
        every value of the "image" from those before it (a density model does).
      num_variates, lookback, horizon, num_marks: of a series N, L (which is `max_len`), H and M, the number of features
        of its times; else None and 0.
      image_shape, num_values: of images H, W and C, and how many values there are; else None.
    """

    inputs: Literal["tokens", "scalars", "series", "image"]
    vocab_size: int | None
    num_classes: int
    max_len: int
    output: Literal["label", "token", "series", "image"] = "label"
    num_variates: int | None = None
    lookback: int | None = None
    horizon: int | None = None
    num_marks: int = 0
    image_shape: tuple[int, int, int] | None = None
    num_values: int | None = None
    pairs: bool = False


class Task(abc.ABC):
    """A data set with its loss and its metrics.

    A subclass lives in one file of `zoo.tasks`, is registered with `register_task` and takes `source=` (which of its
    data sets), `max_len=` (None for its own), `data_dir=` (None for the default) and `seed=` (of data that is drawn);
    what it takes besides are a recipe's `task.options`.
    """

    metric: ClassVar[str] = "accuracy"
    """The metric by which the best checkpoint is chosen."""

    lower_is_better: ClassVar[bool] = False
    """Whether the best has the smallest `metric`, not the largest."""

    sources: ClassVar[tuple[str, ...]]
    """The data sets that `source=` names, the default first."""

    name: str
    source: str
    info: TaskInfo

    @abc.abstractmethod
    def is_prepared(self) -> bool:
        """Whether the data is there and whole."""

    @abc.abstractmethod
    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Makes or fetches the data where it is missing, and returns its folder."""

    @abc.abstractmethod
    def verify(self) -> None:
        """Computes the checksum of every file; raises where one is not as it was made."""

    @abc.abstractmethod
    def split(self, name: Split) -> "Source":
        """The examples of one split."""

    def fingerprint(self) -> str | None:
        """A checksum of the examples, so that a run does not go on with others; None where that cannot be known."""
        return None

    def facts(self) -> dict[str, Any]:
        """What a trained model needs to know of its data, JSON-ready; kept with every checkpoint."""
        return {}

    def recall(self, facts: dict[str, Any]) -> None:
        """Takes the facts of the data that a model was trained on, so that the data itself is not needed."""
        del facts

    def cautions(self) -> list[str]:
        """What must be read with every result on this data, a sentence each without a full stop; mostly nothing."""
        return []

    def arguments(self, batch: dict[str, "jax.Array"]) -> dict[str, Any]:
        """What a model is called with besides `batch["inputs"]`."""
        return {"mask": batch["mask"]}

    @abc.abstractmethod
    def baselines(self, split: Split = "test") -> dict[str, float]:
        """What needs no model: the metric of simple rules, computed from the data in use."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Sizes, lengths, labels and origin of the data, JSON-ready."""

    @abc.abstractmethod
    def sums(self, outputs: "jax.Array", batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        """Weighted sums over the batch of "loss" and of each metric, and their "weight".

        Sums divided by the summed weight are exact over any number of batches, however they were padded. That weight is
        the sum of `weights(batch)`.
        """

    def weights(self, batch: dict[str, "jax.Array"]) -> "jax.Array":
        """How much each loss that `sums` adds up counts, in whatever shape; its sum divides the loss of an update."""
        return batch["weight"]

    def is_better(self, score: float, than: float) -> bool:
        """Whether one value of `metric` is better than another."""
        return score < than if self.lower_is_better else score > than


class ClassificationTask(Task):
    """Softmax cross-entropy and accuracy over `label` [B], weighted by `weight` [B]."""

    def sums(self, outputs: "jax.Array", batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        """Sums of cross-entropy (nats) and of right answers; `outputs` are logits [B, C]."""
        import jax.numpy as jnp
        import optax

        logits = outputs.astype(jnp.float32)
        weight = batch["weight"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        return {"loss": (loss * weight).sum(), "accuracy": (right * weight).sum(), "weight": weight.sum()}


class TokenTask(Task):
    """Softmax cross-entropy and accuracy over `label` [B, T]: ids of tokens, below 0 where nothing is asked."""

    def weights(self, batch: dict[str, "jax.Array"]) -> "jax.Array":
        """[B, T]: 1 where a token is asked for in a row that counts, else 0."""
        return batch["weight"][:, None] * (batch["label"] >= 0)

    def sums(self, outputs: "jax.Array", batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        """Sums of cross-entropy (nats) and of right answers over the tokens asked for; `outputs` are logits [B, T, V].

        The weight is the number of those tokens.
        """
        import jax.numpy as jnp
        import optax

        logits, weight = outputs.astype(jnp.float32), self.weights(batch)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch["label"], 0))
        right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        return {"loss": (loss * weight).sum(), "accuracy": (right * weight).sum(), "weight": weight.sum()}
