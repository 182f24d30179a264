"""What a pooling model gives, as data: the engine says it once, and front ends check requests against it."""

from __future__ import annotations

import msgspec

from octavo.core.errors import RequestError
from octavo.core.params import PoolingParams, PoolingTask

PER_TOKEN: tuple[PoolingTask, ...] = ("token_embed", "token_classify")
"""Tasks whose answer has a row per token of the prompt."""


class PoolingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model."""

    tasks: tuple[PoolingTask, ...]
    """What it can be asked for; the first is what it is for."""
    num_features: int
    """Of an embedding; for classifiers the number of labels."""
    labels: tuple[str, ...] = ()
    """Of a classifier, by index."""
    is_matryoshka: bool = False
    """Whether the first features of an embedding are an embedding."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """The only numbers of features that may be kept; empty where any may."""
    reads_last_token: bool = False
    """The answer is made of the last token's hidden state alone, so a prompt may begin in the prefix cache."""

    def resolve(self, params: PoolingParams, default: PoolingTask) -> PoolingParams:
        """What the engine is asked for: every None decided.

        Raises:
            RequestError: a task that the model has not, or dimensions that it was not trained for.
        """
        task = params.task or default
        if task not in self.tasks:
            raise RequestError(
                f"task is {task!r}; this model has {', '.join(self.tasks)}.", param="task"
            )
        self._check_dimensions(params.dimensions, task)
        skips = params.skip_reading_prefix_cache
        needs_all = task in PER_TOKEN or not self.reads_last_token
        return PoolingParams(
            task=task,
            dimensions=params.dimensions,
            use_activation=params.use_activation is not False,
            skip_reading_prefix_cache=needs_all or bool(skips),
        )

    def _check_dimensions(self, asked: int | None, task: PoolingTask) -> None:
        if asked is None:
            return
        if task not in ("embed", "token_embed"):
            raise RequestError(f"dimensions does not go with {task!r}.", param="dimensions")
        if not self.is_matryoshka:
            raise RequestError(
                f"dimensions is {asked}, and this model does not say that a part of its embedding is one; "
                f"expected none, or is_matryoshka in its config.json.",
                param="dimensions",
            )
        known = self.matryoshka_dimensions
        if known and asked not in known:
            raise RequestError(
                f"dimensions is {asked}; expected one of {', '.join(map(str, known))}.",
                param="dimensions",
            )
        if asked > self.num_features:
            raise RequestError(
                f"dimensions is {asked}; this model's embedding has {self.num_features}.",
                param="dimensions",
            )


ENDPOINTS: dict[PoolingTask, tuple[str, ...]] = {
    "embed": ("/v1/embeddings", "/score", "/rerank", "/pooling"),
    "classify": ("/classify", "/pooling"),
    "score": ("/score", "/rerank"),
    "token_embed": ("/pooling",),
    "token_classify": ("/pooling",),
}
"""Task -> where a server takes it."""
GENERATING = ("/v1/chat/completions", "/v1/completions")


def served_by(facts: PoolingFacts | None) -> tuple[str, ...]:
    """Endpoints at which a model answers; of one without a pooler those that generate."""
    if facts is None:
        return GENERATING
    return tuple(dict.fromkeys(path for task in facts.tasks for path in ENDPOINTS[task]))


def no_generation(facts: PoolingFacts) -> RequestError:
    """The refusal of a prompt to be continued by a model that pools."""
    return RequestError(
        f"this model is for {', '.join(facts.tasks)} and generates no text.",
        code="no_generation",
        fix=f"It is served at {', '.join(served_by(facts))}; in Python: LLM.embed, .classify, .score, .encode.",
    )


def wrong_task(facts: PoolingFacts | None, wanted: str) -> RequestError:
    """The refusal of what a model has not been made for."""
    what = "generates text" if facts is None else f"is for {', '.join(facts.tasks)}"
    return RequestError(
        f"this model {what} and cannot {wanted}.",
        code="wrong_task",
        fix=f"It is served at {', '.join(served_by(facts))}.",
    )
