"""A device whose memory is the host's, and attention whose plans can be kept: what a GPU's run-time does, without one.

Captured steps run their computation again on the same buffers; copies are made at once; a mark notes that it was waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.engine.device import Host


class FakeMark:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def synchronize(self) -> None:
        self.device.num_waits += 1
        if self.device.errors:
            raise self.device.errors.pop(0)


class FakeGraph:
    def __init__(self, compute: Callable[[], None], num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.replay = compute


class FakeDevice(Host):
    """`graph_bytes`: what each capture takes. `errors` are raised by the next waits."""

    def __init__(self, graph_bytes: int = 1, capture_error: str = "") -> None:
        super().__init__()
        self.graph_bytes = graph_bytes
        self.capture_error = capture_error
        self.num_waits = 0
        self.num_captures = 0
        self.errors: list[Exception] = []

    def mark(self) -> FakeMark:
        return FakeMark(self)

    def capture(self, compute: Callable[[], None]) -> FakeGraph:
        if self.capture_error:
            raise RuntimeError(self.capture_error)
        self.num_captures += 1
        compute()  # noting what it calls runs its Python; here that computes, too
        return FakeGraph(compute, self.graph_bytes)


class Kept:
    """A plan that is filled anew."""

    def __init__(self, tables_SB: torch.Tensor) -> None:
        self.tables_SB = tables_SB
        self.plan: Any = None


class Refillable:
    """A backend whose plans of single tokens can be kept, made of one that plans each step."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.num_filled = 0

    def plan(self, batch: Any, group: int, spec: Any) -> Any:
        return self.backend.plan(batch, group, spec)

    def reserve(self, tables_SB: torch.Tensor, *, max_len: int, max_tokens: int) -> Kept:
        assert max_tokens >= len(tables_SB)
        assert tables_SB.shape[1] * 16 >= max_len
        return Kept(tables_SB)

    def fill(self, plan: Kept, batch: Any, group: int) -> None:
        tables_SB = batch.groups[group].block_tables_SB
        assert tables_SB.data_ptr() == plan.tables_SB.data_ptr()
        assert len(tables_SB) == batch.num_tokens == len(batch.context_lens)
        plan.plan = self.backend.plan(batch, group, None)
        self.num_filled += 1

    def run(self, q_THD: torch.Tensor, cache: Any, plan: Any) -> torch.Tensor:
        return self.backend.run(q_THD, cache, plan.plan if isinstance(plan, Kept) else plan)
