"""Types of the compiled CPU kernels (csrc/cpu/bind.cpp). Use them through octavo.kernels.cpu."""

from collections.abc import Sequence
from typing import Any

def isa() -> str: ...
def features() -> dict[str, bool]: ...
def runnable_isas() -> list[str]: ...

class AttentionPlan:
    """Where the tokens of a step and their keys are."""

    def __init__(
        self,
        query_starts: Sequence[int],
        context_lens: Sequence[int],
        block_tables: Any,  # int32 [S, B], a numpy array or a torch CPU tensor
    ) -> None: ...

def paged_attention(  # arrays: numpy or torch CPU, C-contiguous; never copied
    plan: AttentionPlan,
    q: Any,
    k_cache: Any,
    v_cache: Any,
    out: Any,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    num_threads: int = 1,
    isa: str = "",
) -> None: ...
