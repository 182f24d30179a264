"""What is asked of torch.cuda for a capture, and in which order, on a torch.cuda that only listens."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from octavo.engine.device import Cuda

CALLS: list[str] = []


class Graph:
    def capture_begin(self, *, pool: Any, capture_error_mode: str) -> None:
        CALLS.append(f"begin {pool} {capture_error_mode}")

    def capture_end(self) -> None:
        CALLS.append("end")
        if "broken" in CALLS:
            raise RuntimeError("the capture was invalidated")

    def replay(self) -> None:
        CALLS.append("replay")


class Stream:
    def synchronize(self) -> None:
        CALLS.append("wait for the side")


@contextlib.contextmanager
def on(stream: Stream) -> Iterator[None]:
    CALLS.append("to the side")
    yield
    CALLS.append("back")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    CALLS.clear()
    for name, value in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "stream": on,
        "graph_pool_handle": lambda: "pool",
        "current_device": lambda: 0,
        "set_per_process_memory_fraction": lambda share: CALLS.append(f"bound {share:.2f}"),
        "empty_cache": lambda: CALLS.append("give back"),
        "mem_get_info": lambda: (30, 100),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    device = Cuda()
    assert CALLS == ["bound 1.00"]
    CALLS.clear()
    device.torch_device = torch.device("cpu")
    return device


def test_the_library_has_its_workspace_before_the_first_capture_and_nothing_is_collected(
    cuda: Cuda,
) -> None:
    def compute() -> None:
        assert not gc.isenabled()
        CALLS.append("compute")

    cuda.capture(compute).replay()
    cuda.capture(compute)
    assert gc.isenabled()
    once = ["to the side", "begin pool thread_local", "compute", "end", "back"]
    assert ["to the side", "back", "wait for the side", *once, "replay", *once] == CALLS


def test_what_cannot_be_captured_is_told_by_its_own_error(cuda: Cuda) -> None:
    def compute() -> None:
        CALLS.append("broken")
        raise ValueError("the host would wait for the device")

    with pytest.raises(ValueError, match="would wait"):
        cuda.capture(compute)
    assert CALLS[-2:] == ["broken", "end"]
    assert gc.isenabled()


def test_the_bound_of_tensors_is_a_share_of_the_card(cuda: Cuda) -> None:
    cuda.settle(45)
    assert CALLS == ["give back", "bound 0.45"]
    assert cuda.held() == 70
    assert cuda.is_exceeded(torch.OutOfMemoryError("none left"))
    assert not cuda.is_exceeded(RuntimeError("CUDA error: out of memory"))
