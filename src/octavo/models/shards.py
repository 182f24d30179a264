"""What one rank of several has of a model when every layer is divided over them. No torch.

For plans alone: nothing here computes in ranks yet.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from octavo.core.errors import ConfigError
from octavo.models.facts import ModelFacts


def shard(facts: ModelFacts, num_ranks: int) -> ModelFacts:
    """Heads, inner values and tables divided by `num_ranks`; key/value heads are repeated where there are fewer.

    Raises:
        ConfigError: it does not divide.
    """
    if num_ranks == 1:
        return facts
    fitting = [
        count
        for count in range(1, facts.num_heads + 1)
        if facts.num_heads % count == 0
        and facts.intermediate_size % count == 0
        and (facts.num_kv_heads % count == 0 or count % facts.num_kv_heads == 0)
    ]
    if num_ranks not in fitting or facts.sees_whole_prompts:
        known = "1" if facts.sees_whole_prompts else ", ".join(map(str, fitting))
        raise ConfigError(
            f"--tp is {num_ranks}; {facts.num_heads} heads, {facts.num_kv_heads} key/value heads and an inner size of "
            f"{facts.intermediate_size} can be divided over {known}.",
            code="E-PLAN-02",
            fix="Give one of these.",
            param="tp",
        )
    _check_packing(facts, num_ranks)
    return replace(
        facts,
        num_heads=facts.num_heads // num_ranks,
        num_kv_heads=max(1, facts.num_kv_heads // num_ranks),
        intermediate_size=facts.intermediate_size // num_ranks,
        vocab_size=math.ceil(facts.vocab_size / num_ranks),
    )


def _check_packing(facts: ModelFacts, num_ranks: int) -> None:
    """Check that each rank has whole groups of the inputs that are divided.

    Raises:
        ConfigError: it has not.
    """
    packing = None if facts.stored is None else facts.stored.packing
    if packing is None:
        return
    why = ""
    for inputs in (facts.num_heads * facts.head_dim, facts.intermediate_size):
        if packing.group and inputs // num_ranks % packing.group:
            why = f"{inputs} inputs in groups of {packing.group}"
    if packing.is_ordered:
        why = "groups of inputs that are no neighbours (desc_act, actorder)"
    if why:
        raise ConfigError(
            f"--tp is {num_ranks}, and the checkpoint has {why}, which so many ranks cannot divide.",
            code="E-PLAN-02",
            fix="Give a lower number, or a checkpoint without such groups.",
            param="tp",
        )
