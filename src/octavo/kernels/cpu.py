"""Typed wrappers over the compiled CPU kernels (`octavo._cpu`, built from csrc/cpu).

Nothing is copied; shape, dtype and contiguity are checked, in the extension where arrays pass through DLPack and here
where they pass as addresses. Knows no models. Where the extension was not built, `missing()` says so and the other
functions must not be called.

Shape letters: T tokens in the step, H query heads, G key/value heads, D head size, S slices, B table width; of a product
N rows, D inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

try:
    from octavo import _cpu
except ImportError as error:  # a source tree, or a platform, without the compiled part
    _IMPORT_ERROR: str | None = str(error)
else:
    _IMPORT_ERROR = None


class _Settings:
    """Of this process."""

    num_threads = 0


def set_num_threads(count: int) -> None:
    """How many threads the kernels of this process use. Their pool is apart from torch's."""
    _Settings.num_threads = count


def take_over() -> None:
    """The kernels do nearly all the work from now on: torch keeps to one thread, and idle threads watch for 50 us.

    Two pools on the same cores would only wait for each other (docs/log.md).
    """
    torch.set_num_threads(1)
    _cpu.set_watch(50)


def num_threads() -> int:
    """As set, else torch's."""
    return _Settings.num_threads or torch.get_num_threads()


class Array(Protocol):
    """What can be passed without a copy: numpy arrays and torch CPU tensors."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where the data lie."""
        ...


def missing() -> str | None:
    """Why the compiled kernels cannot be used; None when they can."""
    return None if _IMPORT_ERROR is None else f"the compiled extension is missing ({_IMPORT_ERROR})"


def refusal(device: str, dtype: str, dtypes: tuple[str, ...]) -> str | None:
    """Why a kernel for `dtypes` cannot take a case of this device and dtype; None when it can."""
    if device != "cpu":
        return f"runs on cpu and not on {device}"
    if dtype not in dtypes:
        return f"takes {' or '.join(dtypes)} and not {dtype}"
    return missing()


def isa() -> str:
    """The best instruction set of this machine: scalar, avx2 or avx512."""
    return _cpu.isa()


def features() -> dict[str, bool]:
    """Instruction set extensions that this machine has."""
    return _cpu.features()


def runnable_isas() -> tuple[str, ...]:
    """Instruction sets with kernels that run here, best first."""
    return tuple(_cpu.runnable_isas())


class PagedAttention:
    """Attention of one step's tokens over their cached keys: planned once per step, run once per layer.

    A row's result depends on its own query, keys and values alone: not on its batch mates, on how its prompt was cut
    into chunks, or on the number of threads.
    """

    def __init__(
        self, query_starts: Sequence[int], context_lens: Sequence[int], block_tables_SB: Array
    ) -> None:
        """Check and copy the step's tables (`block_tables_SB` int32 [S, B]).

        Raises:
            ValueError: the tables do not fit each other.
        """
        self._plan = _cpu.AttentionPlan(query_starts, context_lens, block_tables_SB)

    def run(
        self,
        q_THD: Array,
        k_cache: Array,
        v_cache: Array,
        out_THD: Array,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
        num_threads: int = 1,
        isa: str = "",
    ) -> None:
        """Write attention into `out_THD`.

        All arrays are C-contiguous and share one dtype, float32 or bfloat16; sums are float32. Caches are
        [num_blocks, 16, G, D]. `isa` forces an instruction set; the empty string takes the best.

        Raises:
            ValueError: shapes, dtypes or block ids do not fit.
            TypeError: an array is elsewhere than on the CPU, or not contiguous.
        """
        _cpu.paged_attention(
            self._plan,
            q_THD,
            k_cache,
            v_cache,
            out_THD,
            scale=scale,
            window=window or 0,
            soft_cap=soft_cap or 0.0,
            num_threads=num_threads,
            isa=isa,
        )


class PackedWeight:
    """A weight in the kernels' own layout: panels of sixteen outputs, one input after the other.

    Kept as bfloat16 where that loses nothing (a bfloat16 weight, or a float32 one whose values all are bfloat16), else
    as float32. Products are float32: each output is one chain of fused multiply-adds over the inputs in order, so that a
    row's result depends neither on the other rows nor on the number of threads or the instruction set.
    """

    def __init__(self, weight_OD: Tensor, *, num_threads: int = 1) -> None:
        """Copy and repack (`weight_OD` float32 or bfloat16 [O, D], C-contiguous).

        Raises:
            ValueError: another dtype.
            TypeError: not on the CPU, or not contiguous.
        """
        self._packed = _cpu.PackedWeight(weight_OD, num_threads=num_threads)
        self.num_outputs, self.num_inputs = weight_OD.shape

    @property
    def num_bytes(self) -> int:
        """Size of the packed form; outputs are filled up to whole panels."""
        return int(self._packed.num_bytes)

    def multiply(
        self,
        x_ND: Tensor,
        out_NO: Tensor,
        bias_O: Tensor | None = None,
        *,
        num_threads: int = 1,
        isa: str = "",
    ) -> None:
        """Write x @ weight^T + bias into `out_NO`; all float32 and C-contiguous.

        Raises:
            ValueError: shapes, dtypes or layout do not fit.
        """
        rows = x_ND.shape[0]
        x = _address("x", x_ND, (rows, self.num_inputs))
        out = _address("out", out_NO, (rows, self.num_outputs))
        bias = 0 if bias_O is None else _address("bias", bias_O, (self.num_outputs,))
        _cpu.linear(self._packed, x, bias, out, rows, num_threads, isa)


def rms_norm(
    x_ND: Tensor,
    weight_D: Tensor,
    out_ND: Tensor,
    eps: float,
    *,
    residual_ND: Tensor | None = None,
    num_threads: int = 1,
    isa: str = "",
) -> None:
    """Write x / sqrt(mean(x^2) + eps) * weight into `out_ND`; with a residual, x is added to it first, in place.

    Shapes: [..., D], weight [D]; all float32 and C-contiguous.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    shape = x_ND.shape
    residual = 0 if residual_ND is None else _address("residual", residual_ND, shape)
    _cpu.rms_norm(
        _address("x", x_ND, shape),
        residual,
        _address("weight", weight_D, shape[-1:]),
        _address("out", out_ND, shape),
        x_ND.numel() // max(1, shape[-1]),
        shape[-1],
        eps,
        num_threads,
        isa,
    )


def silu_and_mul(x_NE: Tensor, out_ND: Tensor, *, num_threads: int = 1, isa: str = "") -> None:
    """Write silu(first half) * second half into `out_ND`. Shapes: [N, 2 D] -> [N, D], float32 and C-contiguous.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    rows, features = out_ND.shape
    out = _address("out", out_ND, (rows, features))
    _cpu.silu_and_mul(
        _address("x", x_NE, (rows, 2 * features)), out, rows, features, num_threads, isa
    )


def attention_inputs(
    qkv_TO: Tensor,
    norms: tuple[Tensor, Tensor, float] | None,
    angles: tuple[Tensor, Tensor],
    slots_T: Tensor,
    cache: tuple[Tensor, Tensor],
    q_THD: Tensor,
    *,
    num_threads: int = 1,
    isa: str = "",
) -> None:
    """Norm queries and keys per head (`norms`: weights [D] and eps), rotate them, store keys and values.

    Shapes: qkv [T, (H + 2 G) D], `angles` cos and sin [T, K], slots int64 [T] below blocks * 16, `cache` keys and values
    [num_blocks, 16, G, D]; the queries are written to `q_THD`. All float32 and C-contiguous. The slots are not checked.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    num_tokens, heads, dim = q_THD.shape
    kv_heads, half = cache[0].shape[2], angles[0].shape[1]
    q_norm = 0 if norms is None else _address("q_norm", norms[0], (dim,))
    k_norm = 0 if norms is None else _address("k_norm", norms[1], (dim,))
    _cpu.attention_inputs(
        _address("qkv", qkv_TO, (num_tokens, (heads + 2 * kv_heads) * dim)),
        q_norm,
        k_norm,
        _address("cos", angles[0], (num_tokens, half)),
        _address("sin", angles[1], (num_tokens, half)),
        _address("slots", slots_T, (num_tokens,), torch.int64),
        _address("q", q_THD, q_THD.shape),
        _address("k_cache", cache[0], cache[0].shape),
        _address("v_cache", cache[1], cache[0].shape),
        num_tokens,
        heads,
        kv_heads,
        dim,
        2 * half,
        0.0 if norms is None else norms[2],
        num_threads,
        isa,
    )


def _address(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> int:
    """Where a tensor's data lie. DLPack would check this, too, at forty times the cost."""
    if (
        tensor.dtype is not dtype
        or tensor.shape != shape
        or not tensor.is_contiguous()
        or not tensor.is_cpu
    ):
        raise ValueError(
            f"{name}: expected {dtype} {list(shape)}, contiguous on cpu; "
            f"given {tensor.dtype} {list(tensor.shape)} on {tensor.device}, strides {tensor.stride()}."
        )
    return tensor.data_ptr()
