"""A device whose memory is the host's, and attention whose plans can be kept: what a GPU's run-time does, without one.

A captured computation is the operations that it came to, on the same memory, without the Python that called them; copies
are made at once; a mark notes that it was waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.engine.device import Host
from octavo.kernels.cpu import extension


class FakeMark:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def synchronize(self) -> None:
        self.device.num_waits += 1
        if self.device.errors:
            raise self.device.errors.pop(0)


Call = Callable[[], object]


class FakeGraph:
    """Calls that were noted, in their order, and the memory that they are about."""

    def __init__(self, noting: _Noting) -> None:
        self._noting = noting

    @torch.inference_mode()
    def replay(self) -> None:
        for call in self._noting.calls:
            call()


class _Noting(TorchDispatchMode):
    """Notes what torch computes, and the compiled kernels in between: addresses, and no Python of who called."""

    current: ClassVar[_Noting | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._kept: list[object] = []
        self._begin()

    def __enter__(self) -> _Noting:
        assert _Noting.current is None, "one capture at a time"
        _Noting.current = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _Noting.current = None
        self.end_kernels()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        assert "_local_scalar_dense" not in name, "the host waits for a value within a capture"
        self.end_kernels()
        result = func(*args, **kwargs)
        self._kept.append(result)
        made = [each for each in _flat(result) if not _is_part_of(each, (args, kwargs))]
        if name.startswith("empty"):
            pass
        elif made:
            self.calls.append(partial(_again, func, args, kwargs, result))
        elif any(a.is_write for r in func._schema.arguments if (a := r.alias_info)):
            self.calls.append(partial(func, *args, **kwargs))
        self._begin()
        return result

    def note(self, call: Call) -> None:
        """Something that no kernel of ours and no operation of torch shows."""
        self.end_kernels()
        self.calls.append(call)
        self._begin()

    def _begin(self) -> None:
        self._kernels = extension.native.Recording()
        self._kernels.begin()

    def end_kernels(self) -> None:
        self._kernels.end()
        self.calls.append(self._kernels.replay)


def _flat(result: Any) -> list[torch.Tensor]:
    return [
        r
        for r in (result if isinstance(result, (tuple, list)) else [result])
        if isinstance(r, torch.Tensor)
    ]


def _is_part_of(tensor: torch.Tensor, given: Any) -> bool:
    args, kwargs = given
    places = {
        t.untyped_storage().data_ptr() for each in (*args, *kwargs.values()) for t in _flat(each)
    }
    return tensor.untyped_storage().data_ptr() in places


def _again(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    for old, new in zip(_flat(result), _flat(func(*args, **kwargs)), strict=True):
        old.copy_(new)


class FakeDevice(Host):
    """`graph_bytes`: what each capture takes. `errors` are raised by the next waits."""

    def __init__(self, graph_bytes: int = 1, capture_error: str = "") -> None:
        super().__init__()
        self.graph_bytes = graph_bytes
        self.capture_error = capture_error
        self.num_waits = 0
        self.num_captures = 0
        self.errors: list[Exception] = []
        self.untouched: list[torch.Tensor] = []
        """What a capture, which computes nothing on a GPU, must leave as it is: here it computes."""

    def mark(self) -> FakeMark:
        return FakeMark(self)

    @property
    def is_capturing(self) -> bool:
        return _Noting.current is not None

    def held(self) -> int:
        return self.num_captures * self.graph_bytes

    def capture(self, compute: Callable[[], None]) -> FakeGraph:
        if self.capture_error:
            raise RuntimeError(self.capture_error)
        before = [tensor.clone() for tensor in self.untouched]
        with _Noting() as noting:
            compute()
        for tensor, was in zip(self.untouched, before, strict=True):
            tensor.copy_(was)
        self.num_captures += 1
        return FakeGraph(noting)


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
        self.num_beside = 0

    def plan(self, batch: Any, group: int, spec: Any) -> Any:
        return self.backend.plan(batch, group, spec)

    def reserve(
        self,
        tables_SB: torch.Tensor,
        *,
        max_len: int,
        max_tokens: int,
        beside: Kept | None = None,
    ) -> Kept:
        self.num_beside += beside is not None
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
        if not isinstance(plan, Kept):
            assert _Noting.current is None, "a plan of one step within a capture"
            return self.backend.run(q_THD, cache, plan)
        noting, out_THD = _Noting.current, torch.empty_like(q_THD)

        def attend() -> None:
            out_THD.copy_(self.backend.run(q_THD, cache, plan.plan))

        if noting is None:
            attend()
        else:
            noting.note(attend)
        return out_THD
