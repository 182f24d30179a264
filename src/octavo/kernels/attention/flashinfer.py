"""Attention by FlashInfer, where it is installed: https://docs.flashinfer.ai.

Its paged wrappers in the layout "NHD" read Octavo's cache as it is: k and v [blocks, 16, G, D]. They want the tables as one
list of pages with the beginnings of each sequence's, and plan on the host: steps of one token per sequence by the decode
wrapper, all others by the prefill wrapper. Shape letters in `base.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention import installed
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.kv import KVTensors

MODULE = "flashinfer"
HEAD_DIMS = (64, 128, 256)
LEAST_CAPABILITY = (8, 0)
WORKSPACE_BYTES = 128 << 20
"""What its documentation recommends."""
PLAN_BYTES = 8 << 20
"""Of a wrapper's numbers: what it allocates itself unless it is given another."""
FEW_QUERIES = 2
"""Query heads per key/value head up to which its kernels without matrix units are the faster, by its documentation."""


class InferPlan(NamedTuple):
    """A wrapper that was told of the step; `page_room` of one that is filled anew."""

    wrapper: Any
    tables_SB: torch.Tensor
    page_room: int = 0


class FlashInferAttention:
    """For one case. All wrappers share one workspace: layers run one after the other."""

    def __init__(self, case: AttentionCase) -> None:
        self.case = case
        module = installed.load(MODULE)
        assert not isinstance(module, str), module
        self._library: Any = module
        self._workspace: torch.Tensor | None = None
        self._wrappers: dict[tuple[int, str], Any] = {}
        self._kept: dict[int, _Kept] = {}
        """By KV group: plans of a step's groups stand side by side, those of different steps do not."""
        self._planned: Any = None
        """When the device has read what the last plan was sent from."""

    @staticmethod
    def refuses(case: AttentionCase, /) -> str | None:
        """Refuses all but causal attention in 16 bits on Ampere and later, and a process without FlashInfer."""
        reason = installed.refusal(case, HEAD_DIMS)
        if reason is not None:
            return reason
        if not installed.is_installed(MODULE):
            return "FlashInfer is not installed"
        reason = installed.refusal_of_device(LEAST_CAPABILITY)
        if reason is not None:
            return reason
        module = installed.load(MODULE)
        return module if isinstance(module, str) else None

    def plan(self, batch: ForwardBatch, group_index: int, spec: KVSpec, /) -> InferPlan:
        """Tell a wrapper of the step."""
        tables_SB = batch.groups[group_index].block_tables_SB
        is_decode = batch.num_tokens == batch.num_slices and all(
            start == index for index, start in enumerate(batch.query_starts)
        )
        key = (group_index, "decode" if is_decode else "prefill")
        if key not in self._wrappers:
            self._wrappers[key] = self._make(is_decode, tables_SB.device)
        wrapper = self._wrappers[key]
        starts = None if is_decode else installed.starts(batch)
        self._tell(wrapper, batch, tables_SB, starts)
        return InferPlan(wrapper, tables_SB)

    def reserve(
        self,
        tables_SB: torch.Tensor,
        *,
        max_len: int,
        max_tokens: int,
        beside: InferPlan | None = None,
    ) -> InferPlan:
        """A plan of steps of one token for each of S sequences, to be filled before each: what a graph captures."""
        size, device = len(tables_SB), tables_SB.device

        def numbers(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        page_room = size * -(-max_len // BLOCK_SIZE)
        wrapper = self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._float_workspace(device),
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=self._uses_matrix_units,
            paged_kv_indptr_buffer=numbers(size + 1),
            paged_kv_indices_buffer=self._pages_of(tables_SB, page_room),
            paged_kv_last_page_len_buffer=numbers(size),
        )
        wrapper.reset_workspace_buffer(
            self._float_workspace(device), self._numbers_of(tables_SB, device)
        )
        return InferPlan(wrapper, tables_SB, page_room)

    def fill(self, plan: InferPlan, batch: ForwardBatch, group_index: int) -> None:
        """Tell the wrapper of a plan from `reserve` of a step of one token per sequence.

        Raises:
            ValueError: the step is of another size.
        """
        tables_SB = batch.groups[group_index].block_tables_SB
        if batch.num_tokens != len(plan.tables_SB) or len(tables_SB) != len(plan.tables_SB):
            raise ValueError(
                f"a step of {batch.num_tokens} tokens does not fit a plan of {len(plan.tables_SB)}"
            )
        self._tell(plan.wrapper, batch, tables_SB, None)

    def run(self, q_THD: torch.Tensor, cache: KVTensors, plan: InferPlan, /) -> torch.Tensor:
        """[T, H, D] -> [T, H, D]."""
        out_THD: torch.Tensor = plan.wrapper.run(q_THD.contiguous(), (cache.k, cache.v))
        return out_THD

    @property
    def _uses_matrix_units(self) -> bool:
        return self.case.num_heads // self.case.num_kv_heads > FEW_QUERIES

    def _make(self, is_decode: bool, device: torch.device) -> Any:
        workspace = self._float_workspace(device)
        if not is_decode:
            return self._library.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        return self._library.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "NHD", use_tensor_cores=self._uses_matrix_units
        )

    def _float_workspace(self, device: torch.device) -> torch.Tensor:
        if self._workspace is None:
            # It wants zeros at first.
            self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        return self._workspace

    def _kept_of(self, tables_SB: torch.Tensor) -> _Kept:
        # All buckets of a group have their tables in the same place.
        return self._kept.setdefault(tables_SB.data_ptr(), _Kept())

    def _pages_of(self, tables_SB: torch.Tensor, room: int) -> torch.Tensor:
        """A list of pages for any bucket of the group: of the largest so far, where it has room."""
        kept = self._kept_of(tables_SB)
        if kept.pages is None or len(kept.pages) < room:
            kept.pages = torch.zeros(room, dtype=torch.int32, device=tables_SB.device)
        return kept.pages

    def _numbers_of(self, tables_SB: torch.Tensor, device: torch.device) -> torch.Tensor:
        """What planners write for the device: one for all buckets of a group, filled before each step."""
        kept = self._kept_of(tables_SB)
        if kept.numbers is None:
            kept.numbers = torch.empty(PLAN_BYTES, dtype=torch.uint8, device=device)
        return kept.numbers

    def _tell(
        self,
        wrapper: Any,
        batch: ForwardBatch,
        tables_SB: torch.Tensor,
        starts_S1: torch.Tensor | None,
    ) -> None:
        """Plan. The numbers that the wrapper sends are read before it writes them again."""
        case, device = self.case, tables_SB.device
        if self._planned is not None:
            self._planned.synchronize()
        lens_S = installed.contexts(batch)
        begins_S1, places = installed.pages(lens_S, tables_SB.shape[1], BLOCK_SIZE)
        flat = tables_SB.contiguous().flatten()
        pages = flat.index_select(0, installed.send(places, device))
        last_S = (lens_S - 1) % BLOCK_SIZE + 1
        heads = (case.num_heads, case.num_kv_heads, case.head_dim)
        dtype = getattr(torch, case.dtype)
        options = {
            "window_left": installed.window_left(case),
            "logits_soft_cap": case.soft_cap or 0.0,
            "sm_scale": case.scale,
            "q_data_type": dtype,
            "kv_data_type": dtype,
        }
        if starts_S1 is None:
            wrapper.plan(begins_S1, pages, last_S, *heads, BLOCK_SIZE, **options)
        else:
            wrapper.plan(
                starts_S1, begins_S1, pages, last_S, *heads, BLOCK_SIZE, causal=True, **options
            )
        if device.type == "cuda":
            self._planned = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._planned.record()


class _Kept:
    """What the buckets of one KV group share."""

    def __init__(self) -> None:
        self.pages: torch.Tensor | None = None
        self.numbers: torch.Tensor | None = None
