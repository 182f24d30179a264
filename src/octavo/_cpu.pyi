"""Types of the compiled CPU kernels (csrc/cpu/bind*.cpp). Use them through octavo.kernels.cpu."""

from collections.abc import Sequence
from typing import Any

def isa() -> str: ...
def features() -> dict[str, bool]: ...
def runnable_isas() -> list[str]: ...
def limit_isa(name: str) -> None: ...
def set_watch(microseconds: int) -> None: ...

class AttentionPlan:
    """Where the tokens of a step and their keys are."""

    def __init__(
        self,
        query_starts: Sequence[int],
        context_lens: Sequence[int],
        block_tables: Any,  # int32 [S, B], a numpy array or a torch CPU tensor
    ) -> None: ...
    def update(self, context_lens: Sequence[int], block_tables: Any) -> None: ...

class Recording:
    """Calls of one step, to be made again."""

    def __init__(self) -> None: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def replay(self) -> None: ...
    def profile(self) -> list[tuple[str, float]]: ...
    def __len__(self) -> int: ...

def paged_attention(
    plan: AttentionPlan,
    q: int,
    k_cache: int,
    v_cache: int,
    k_scales: int,
    v_scales: int,
    out: int,
    num_tokens: int,
    num_blocks: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: int,
    cache_dtype: int,
    scale: float,
    window: int,
    ahead: int,
    soft_cap: float,
    num_threads: int,
    isa: str,
    /,
) -> None: ...

class PackedWeight:
    """A weight in the kernels' layout."""

    def __init__(self, weight: Any, num_threads: int) -> None: ...  # [O, D], C-contiguous
    @property
    def num_bytes(self) -> int: ...

class QuantWeight:
    """A weight as int8 or int4 in the kernels' layout."""

    def __init__(  # [O, D], C-contiguous
        self, weight: Any, bits: int, group: int, has_zeros: bool, num_threads: int
    ) -> None: ...
    @staticmethod
    def take(  # uint8 [O, D], [O, G], uint8 [O, G]
        levels: Any, scales: Any, zeros: Any, group: int, num_threads: int
    ) -> QuantWeight: ...
    @property
    def num_bytes(self) -> int: ...

class PackingAhead:
    """Packs weights in threads of its own."""

    def __init__(self) -> None: ...
    def add(
        self,
        sources: Sequence[memoryview],  # bytes
        rows: Sequence[int],
        num_inputs: int,
        dtype: str,
        bits: int,
        group: int,
        has_zeros: bool,
    ) -> int: ...
    def start(self, num_threads: int) -> None: ...
    def take(self, index: int) -> PackedWeight | QuantWeight: ...
    @property
    def share(self) -> float: ...

# Below, tensors are addresses of float32 (slots and ids: int64) on the CPU, C-contiguous; 0 where there is none.
def linear(
    weight: PackedWeight, x: int, bias: int, out: int, rows: int, num_threads: int, isa: str, /
) -> None: ...
def quant_linear(
    weight: QuantWeight, x: int, bias: int, out: int, rows: int, num_threads: int, isa: str, /
) -> None: ...
def packed_rows(weight: PackedWeight, ids: int, out: int, count: int, /) -> None: ...
def quant_rows(weight: QuantWeight, ids: int, out: int, count: int, /) -> None: ...
def rms_norm(
    x: int,
    residual: int,
    weight: int,
    out: int,
    rows: int,
    features: int,
    eps: float,
    num_threads: int,
    isa: str,
    /,
) -> None: ...
def layer_norm(
    x: int,
    residual: int,
    weight: int,
    bias: int,
    out: int,
    rows: int,
    features: int,
    eps: float,
    num_threads: int,
    isa: str,
    /,
) -> None: ...
def activate(
    x: int,
    out: int,
    rows: int,
    features: int,
    curve: int,
    is_gated: bool,
    num_threads: int,
    isa: str,
    /,
) -> None: ...
def silu_and_mul(
    x: int, out: int, rows: int, features: int, num_threads: int, isa: str, /
) -> None: ...
def attention_inputs(
    qkv: int,
    q_weight: int,
    k_weight: int,
    cos: int,
    sin: int,
    slots: int,
    q_out: int,
    cache_dtype: int,
    k_cache: int,
    v_cache: int,
    k_scales: int,
    v_scales: int,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_rotated: int,
    eps: float,
    num_threads: int,
    isa: str,
    /,
) -> None: ...
def sample(
    logits: int,
    params: int,  # of kernels.sampling.ROW
    rows: int,  # int64, as are the next two
    positions: int,
    token_ids: int,
    num_rows: int,
    vocab_size: int,
    masks: int,  # uint32; 0, as the next, where there are none
    mask_of: int,  # int64
    num_masks: int,
    num_threads: int,
    isa: str,
    /,
) -> None: ...
