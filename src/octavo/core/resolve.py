"""(config, facts) -> numbers and reasons: one small pure rule per decision.

Each rule returns a `Decision`; together they are printed at start, so that every automatic choice is seen once, with
its reason and the flag that forces another.
"""

from __future__ import annotations

from typing import NamedTuple

from octavo.core.errors import ConfigError
from octavo.core.kvspec import BLOCK_SIZE

CPU_STEP_TOKENS = 512
"""Default token budget on CPU: enough rows for the matrix units, a step of seconds at most for a 1B model."""
CUDA_STEP_TOKENS = 8192
CPU_MEMORY_SHARE = 0.5
CUDA_MEMORY_SHARE = 0.9


class Decision(NamedTuple):
    """One automatic choice."""

    name: str
    value: str
    reason: str


def step_tokens(
    asked: int | None, *, max_num_seqs: int, device: str, whole_prompts_of: int | None
) -> tuple[int, Decision]:
    """Token budget of a step. `whole_prompts_of` is the context length where prompts are not cut.

    Raises:
        ConfigError: the budget asked for cannot work with the other limits.
    """
    least = max_num_seqs + BLOCK_SIZE
    if asked is not None:
        if asked < least:
            raise ConfigError(
                f"--max-num-batched-tokens {asked} is below --max-num-seqs {max_num_seqs} + {BLOCK_SIZE}.",
                code="E-CFG-03",
                fix=f"Raise it to {least}, or lower --max-num-seqs to {max(1, asked - BLOCK_SIZE)}.",
            )
        if whole_prompts_of is not None and asked < whole_prompts_of:
            raise ConfigError(
                f"without chunks (an encoder, or --no-enable-chunked-prefill) a step must take the longest prompt "
                f"({whole_prompts_of} tokens); --max-num-batched-tokens is {asked}.",
                code="E-CFG-04",
                fix=f"Raise it to {whole_prompts_of + max_num_seqs}, or lower --max-model-len.",
            )
        return asked, Decision("max_num_batched_tokens", str(asked), "as given")
    default = CUDA_STEP_TOKENS if device == "cuda" else CPU_STEP_TOKENS
    value = max(default, least, (whole_prompts_of or 0) + max_num_seqs if whole_prompts_of else 0)
    return value, Decision("max_num_batched_tokens", str(value), f"default on {device}")


def steps_ahead(asked: bool | None, device: str, forbidden: str | None) -> tuple[bool, Decision]:
    """Whether a step is planned and launched while the one before it runs. `forbidden`: why it cannot be, else None.

    On a CPU the host that would plan is the device that computes, so that nothing is won.
    """
    name = "async_scheduling"
    if forbidden is not None and asked is not False:
        return False, Decision(name, "off", forbidden)
    if asked is not None:
        return asked, Decision(name, "on" if asked else "off", "as given")
    if device == "cpu":
        return False, Decision(name, "off", "default on cpu, where the host is the device")
    return True, Decision(
        name, "on", f"default on {device}, which would wait for the host otherwise"
    )


def cpu_threads(asked: int | None, usable: int) -> tuple[int, Decision]:
    """Threads of the kernels. More than the machine can run at once would wait for each other inside every product;
    fewer give the same bits, so a setting from a larger machine starts on a smaller one, and says so.
    """
    if asked is None:
        return usable, Decision("threads", str(usable), "the cores there are")
    if asked > usable:
        reason = f"--threads {asked} is more than the {usable} cores that this process may use"
        return usable, Decision("threads", str(usable), reason)
    return asked, Decision("threads", str(asked), "as given")


def memory_share(asked: float | None, device: str) -> float:
    """Share of the device's available memory to use."""
    if asked is not None:
        return asked
    return CUDA_MEMORY_SHARE if device == "cuda" else CPU_MEMORY_SHARE


def context_length(asked: int | None, *, model_limit: int, fits: int) -> tuple[int, Decision]:
    """Longest prompt plus output. `fits` is what the KV cache can hold for one sequence.

    Raises:
        ConfigError: more was asked for than the model was trained for.
    """
    if asked is not None:
        if asked > model_limit:
            raise ConfigError(
                f"--max-model-len {asked} exceeds the model's max_position_embeddings {model_limit}.",
                code="E-CFG-05",
                fix=f"Use at most {model_limit}; to go beyond, set rope scaling in the model's config.json.",
            )
        return asked, Decision("max_model_len", str(asked), "as given")
    if fits < model_limit:
        reason = (
            f"what the KV cache holds; the model allows {model_limit}. Force with --max-model-len"
        )
        return fits, Decision("max_model_len", str(fits), reason)
    return model_limit, Decision("max_model_len", str(model_limit), "the model's own")
