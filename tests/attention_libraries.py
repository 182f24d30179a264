"""Stand-ins for the attention libraries that may be installed: their documented signatures to the letter, computed by the
reference. What is not in the signature, or of another shape, dtype or device than documented, is an error.

Documented at https://docs.flashinfer.ai/api/attention.html and in hopper/flash_attn_interface.py of FlashAttention.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import KVSpec
from octavo.kernels.attention import flashinfer
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.attention.reference import ReferenceAttention
from octavo.kernels.kv import KVTensors

HALVES = (torch.bfloat16, torch.float16)


def is_int32(values: torch.Tensor, *shape: int) -> None:
    assert values.dtype == torch.int32 and values.is_contiguous()
    assert values.shape == shape, f"{tuple(values.shape)} and not {shape}"


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: list[int],
    lens: list[int],
    tables: torch.Tensor,
    *,
    scale: float,
    window_left: int,
    soft_cap: float,
) -> torch.Tensor:
    """By the reference."""
    assert q.dtype == k.dtype == v.dtype and q.dtype in HALVES
    dtype = str(q.dtype).removeprefix("torch.")
    case = AttentionCase(
        device="cpu",
        dtype=dtype,
        cache_dtype=dtype,
        num_heads=q.shape[1],
        num_kv_heads=k.shape[2],
        head_dim=q.shape[2],
        scale=scale,
        window=None if window_left < 0 else window_left + 1,
        soft_cap=soft_cap or None,
    )
    nothing = torch.zeros(q.shape[0], dtype=torch.int64)
    batch = ForwardBatch(
        token_ids_T=nothing,
        positions_T=nothing,
        query_starts=tuple(starts),
        context_lens=tuple(lens),
        groups=(GroupBatch(slots_T=nothing, block_tables_SB=tables),),
        logits_rows_N=nothing[:0],
    )
    reference = ReferenceAttention(case)
    spec = KVSpec(num_kv_heads=k.shape[2], head_dim=k.shape[3], dtype=dtype)
    return reference.run(q, KVTensors(k, v), reference.plan(batch, 0, spec))


class _Paged:
    """What both wrappers do once planned."""

    def __init__(self, workspace: torch.Tensor, kv_layout: str) -> None:
        assert workspace.dtype == torch.uint8 and workspace.numel() >= flashinfer.WORKSPACE_BYTES
        assert not workspace.any(), "must be zeros for its first use"
        assert kv_layout == "NHD", "Octavo's blocks are [token, head, dim]"
        self._told: dict[str, Any] = {}

    def reset_workspace_buffer(
        self, float_workspace_buffer: torch.Tensor, int_workspace_buffer: torch.Tensor
    ) -> None:
        assert float_workspace_buffer.dtype == int_workspace_buffer.dtype == torch.uint8
        assert int_workspace_buffer.numel() >= flashinfer.PLAN_BYTES

    def _plan(self, **told: Any) -> None:
        indptr, last = told["indptr"], told["last_page_len"]
        size = len(last)
        is_int32(indptr, size + 1)
        is_int32(told["indices"], int(indptr[-1]))
        is_int32(last, size)
        assert indptr.device.type == last.device.type == "cpu", "plans are made on the host"
        assert int(last.min()) >= 1 and int(last.max()) <= told["page_size"]
        assert told["num_qo_heads"] % told["num_kv_heads"] == 0
        assert told["logits_soft_cap"] is None or told["logits_soft_cap"] >= 0
        self._told = told

    def _run(
        self, q: torch.Tensor, paged: tuple[torch.Tensor, torch.Tensor], starts: list[int]
    ) -> torch.Tensor:
        told = self._told
        k, v = paged
        heads = (told["num_qo_heads"], told["num_kv_heads"], told["head_dim"])
        assert q.shape == (starts[-1], heads[0], heads[2]) and q.is_contiguous()
        assert k.shape == v.shape and k.shape[1:] == (told["page_size"], *heads[1:])
        assert q.dtype == told["q_data_type"] and k.dtype == told["kv_data_type"]
        counts = torch.diff(told["indptr"]).tolist()
        tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, part in enumerate(torch.split(told["indices"], counts)):
            tables[row, : len(part)] = part
        lens = [
            (count - 1) * told["page_size"] + last
            for count, last in zip(counts, told["last_page_len"].tolist(), strict=True)
        ]
        return attend(
            q,
            k,
            v,
            starts,
            lens,
            tables,
            scale=told["sm_scale"],
            window_left=told["window_left"],
            soft_cap=told["logits_soft_cap"] or 0.0,
        )


class BatchDecodeWithPagedKVCacheWrapper(_Paged):
    made: list[BatchDecodeWithPagedKVCacheWrapper] = []

    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
        backend: str = "auto",
        jit_args: list[Any] | None = None,
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout)
        self.buffers = (
            paged_kv_indptr_buffer,
            paged_kv_indices_buffer,
            paged_kv_last_page_len_buffer,
        )
        self.is_captured = use_cuda_graph
        assert all((buffer is not None) == use_cuda_graph for buffer in self.buffers)
        self.use_tensor_cores = use_tensor_cores
        self.made.append(self)

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        pos_encoding_mode: str = "NONE",
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        o_data_type: Any = None,
        data_type: Any = None,
        sm_scale: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        non_blocking: bool = True,
        block_tables: torch.Tensor | None = None,
        seq_lens: torch.Tensor | None = None,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
    ) -> None:
        if self.is_captured:
            starts, pages, last = self.buffers
            assert starts is not None and pages is not None and last is not None
            assert len(last_page_len) == len(last) == len(starts) - 1, "the size cannot change"
            assert len(indices) <= len(pages), "no room"
            starts.copy_(indptr)
            pages[: len(indices)].copy_(indices)
            last.copy_(last_page_len)
            indptr, indices, last_page_len = starts, pages[: len(indices)], last
        self._plan(
            indptr=indptr,
            indices=indices,
            last_page_len=last_page_len,
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            window_left=window_left,
            logits_soft_cap=logits_soft_cap,
            q_data_type=q_data_type,
            kv_data_type=kv_data_type,
            sm_scale=sm_scale,
        )

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: tuple[torch.Tensor, torch.Tensor],
        *args: Any,
        q_scale: float | None = None,
        k_scale: float | None = None,
        v_scale: float | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
    ) -> torch.Tensor:
        assert not args
        return self._run(q, paged_kv_cache, list(range(len(self._told["last_page_len"]) + 1)))


class BatchPrefillWithPagedKVCacheWrapper(_Paged):
    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: torch.Tensor | None = None,
        paged_kv_indptr_buf: torch.Tensor | None = None,
        paged_kv_indices_buf: torch.Tensor | None = None,
        paged_kv_last_page_len_buf: torch.Tensor | None = None,
        custom_mask_buf: torch.Tensor | None = None,
        mask_indptr_buf: torch.Tensor | None = None,
        backend: str = "auto",
        jit_args: list[Any] | None = None,
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout)

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        custom_mask: torch.Tensor | None = None,
        packed_custom_mask: torch.Tensor | None = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        o_data_type: Any = None,
        non_blocking: bool = True,
    ) -> None:
        assert causal, "the default is not"
        is_int32(qo_indptr, len(paged_kv_last_page_len) + 1)
        self._plan(
            indptr=paged_kv_indptr,
            indices=paged_kv_indices,
            last_page_len=paged_kv_last_page_len,
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim_qk,
            page_size=page_size,
            window_left=window_left,
            logits_soft_cap=logits_soft_cap,
            q_data_type=q_data_type,
            kv_data_type=kv_data_type,
            sm_scale=sm_scale,
        )
        self._starts = qo_indptr.tolist()

    def run(
        self,
        q: torch.Tensor,
        paged_kv_cache: tuple[torch.Tensor, torch.Tensor],
        *args: Any,
        k_scale: float | None = None,
        v_scale: float | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
    ) -> torch.Tensor:
        assert not args
        return self._run(q, paged_kv_cache, self._starts)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: None = None,
    v: None = None,
    qv: None = None,
    rotary_cos: None = None,
    rotary_sin: None = None,
    cache_seqlens: torch.Tensor | None = None,
    cache_batch_idx: None = None,
    cache_leftpad: None = None,
    page_table: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k_new: None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: None = None,
    q_descale: None = None,
    k_descale: None = None,
    v_descale: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: None = None,
    num_splits: int = 0,
    pack_gqa: None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> torch.Tensor:
    assert cache_seqlens is not None and page_table is not None and cu_seqlens_q is not None
    size = len(cache_seqlens)
    is_int32(cache_seqlens, size)
    is_int32(cu_seqlens_q, size + 1)
    assert page_table.dtype == torch.int32 and page_table.shape[0] == size
    assert page_table.stride(1) == 1
    assert q.dim() == 3 and q.is_contiguous() and int(cu_seqlens_q[-1]) == len(q)
    assert max_seqlen_q == int(torch.diff(cu_seqlens_q).max())
    assert causal and softmax_scale is not None
    assert window_size == (-1, -1) or (window_size[0] >= 0 and window_size[1] == 0)
    return attend(
        q,
        k_cache,
        v_cache,
        cu_seqlens_q.tolist(),
        cache_seqlens.tolist(),
        page_table,
        scale=softmax_scale,
        window_left=window_size[0],
        soft_cap=softcap,
    )


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> ModuleType:
    """A module of that name, as if it were installed."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in contents.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def install_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both, with little room to work in: a stand-in needs none."""
    assert flashinfer.WORKSPACE_BYTES == 128 << 20 and flashinfer.PLAN_BYTES == 8 << 20
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 4096)
    monkeypatch.setattr(flashinfer, "PLAN_BYTES", 256)
    BatchDecodeWithPagedKVCacheWrapper.made.clear()
    install(
        monkeypatch,
        "flashinfer",
        BatchDecodeWithPagedKVCacheWrapper=BatchDecodeWithPagedKVCacheWrapper,
        BatchPrefillWithPagedKVCacheWrapper=BatchPrefillWithPagedKVCacheWrapper,
    )
    install(monkeypatch, "flash_attn_interface", flash_attn_with_kvcache=flash_attn_with_kvcache)


def pretend_device(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """What questions about the device are answered with; nothing runs there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
