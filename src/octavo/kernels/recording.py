"""A computation recorded once and made again without Python: what a captured graph is on a GPU, for the CPU kernels.

Between two kernels of a layer lie ten to twenty microseconds of Python, which at batch 1 is a sixth of a step of a small
model. A step of one token per sequence makes the same calls on the same buffers every time; only what is in the step's
inputs differs.

While a recording is being written, every tensor that is made comes from an `Arena` that stays, calls of the compiled
kernels are noted, and any other computation by torch ends the attempt with its name: nothing can be left out silently.
What torch must compute from the step's inputs is marked with `recompute`, and what is prepared from a batch with
`before_replay`; both are done again before each replay.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from octavo.core.batch import ForwardBatch
from octavo.kernels.cpu import extension

Refresh = Callable[[ForwardBatch], None]

_ALIGNMENT = 64
_MIN_SLAB = 1 << 20
_MAKES = frozenset({"empty", "new_empty", "empty_like"})
_LOOKS = frozenset(
    (
        "data_ptr",
        "device",
        "dim",
        "dtype",
        "is_contiguous",
        "is_cpu",
        "ndim",
        "numel",
        "shape",
        "size",
        "stride",
    )
    + ("__dlpack__", "__dlpack_device__", "__len__")
)
_VIEWS = frozenset(
    (
        "contiguous",
        "detach",
        "expand",
        "flatten",
        "float",
        "__getitem__",
        "reshape",
        "squeeze",
        "to",
        "transpose",
        "unflatten",
    )
    + ("unsqueeze", "view")
)
"""Some of them copy at times; then what they return is no view."""


class Arena:
    """Memory of the tensors within recordings. Recordings share one, because one at a time is replayed.

    A chunk is free again when the last tensor on it is gone, so that a recording's buffers are as few and as warm in the
    caches as those of a computation that is not recorded.
    """

    def __init__(self) -> None:
        self._slabs: list[np.ndarray] = []
        self._free: list[tuple[int, int, int]] = []
        self._writing = 0

    @property
    def num_bytes(self) -> int:
        """Size of all slabs."""
        return sum(slab.nbytes for slab in self._slabs)

    def begin(self) -> None:
        """A new recording: everything is free, whatever earlier ones keep there; each replay writes what it reads."""
        self._writing += 1
        self._free = [(index, 0, slab.nbytes) for index, slab in enumerate(self._slabs)]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor of the recording that is being written."""
        size = max(_ALIGNMENT, -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT)
        slab, start = self._take(size)
        chunk = self._slabs[slab][start : start + size]
        weakref.finalize(chunk, self._give_back, self._writing, slab, start, size)
        return torch.from_numpy(chunk).view(dtype)[: math.prod(shape)].view(tuple(shape))

    def _take(self, size: int) -> tuple[int, int]:
        for index, (slab, start, room) in enumerate(self._free):
            if room >= size:
                left = (slab, start + size, room - size)
                self._free[index : index + 1] = [left] if room > size else []
                return slab, start
        # Doubling: a few slabs whatever the sizes of the steps that come.
        num_bytes = max(_MIN_SLAB, self.num_bytes, 1 << (size - 1).bit_length())
        raw = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
        skip = -raw.ctypes.data % _ALIGNMENT
        self._slabs.append(raw[skip : skip + num_bytes])
        self._free.append((len(self._slabs) - 1, size, num_bytes - size))
        return len(self._slabs) - 1, 0

    def _give_back(self, writing: int, slab: int, start: int, size: int) -> None:
        if writing != self._writing:
            return  # of an earlier recording
        self._free.append((slab, start, size))
        self._free.sort()
        merged: list[tuple[int, int, int]] = []
        for piece in self._free:
            if merged and merged[-1][0] == piece[0] and sum(merged[-1][1:]) == piece[1]:
                merged[-1] = (piece[0], merged[-1][1], merged[-1][2] + piece[2])
            else:
                merged.append(piece)
        self._free = merged


class Recording:
    """One computation and what it returned. `refusal` says why it cannot be replayed."""

    def __init__(self, arena: Arena) -> None:
        self.refusal: str | None = None
        self.refreshes: list[Refresh] = []
        self._arena = arena
        self._calls = extension.native.Recording()
        self._output: Any = None

    def write(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Compute, taking note of how. The inputs must be tensors that stay where they are.

        What it returns is good until the next replay of any recording on the arena.
        """
        assert _Current.recording is None, "another recording is being written"
        self._arena.begin()
        self._calls.begin()
        _Current.recording = self
        try:
            with _Watch(self, self._arena):
                self._output = compute()
        finally:
            _Current.recording = None
            self._calls.end()
        output: torch.Tensor = self._output
        return output

    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        """Compute again, for what the inputs hold now."""
        for refresh in self.refreshes:
            refresh(batch)
        self._calls.replay()
        output: torch.Tensor = self._output
        return output

    def profile(self) -> list[tuple[str, float]]:
        """Replay for the inputs of last time: each call's kernel and its seconds, in order."""
        return self._calls.profile()


def refusal(device: str, dtype: str) -> str | None:
    """Why nothing can be recorded there; None where it can be tried."""
    return extension.refusal(device, dtype, ("float32",))


class _Current:
    """The recording that this process's engine thread is writing."""

    recording: Recording | None = None


class _Watch(TorchFunctionMode):
    """Sees every call of torch's functions: makes tensors from the arena, lets views pass, refuses what computes.

    Below these calls, in torch's dispatcher, would be the surer place, but the first use of that imports 800 modules (1.5 s).
    """

    def __init__(self, recording: Recording, arena: Arena) -> None:
        super().__init__()
        self._recording = recording
        self._arena = arena

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name: str = func.__name__
        if name == "__get__":  # an attribute
            name = func.__self__.__name__
        if name in _MAKES:
            return self._arena.empty(result.shape, result.dtype)
        is_harmless = name in _LOOKS or (name in _VIEWS and _is_view(result, args[0]))
        if not is_harmless and self._recording.refusal is None:
            self._recording.refusal = f"{name} is computed by torch"
        return result


def _is_view(result: torch.Tensor, of: torch.Tensor) -> bool:
    return result.untyped_storage().data_ptr() == of.untyped_storage().data_ptr()


def recompute(
    function: Callable[..., tuple[torch.Tensor, ...]], *inputs: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """`function(*inputs)`; a recording calls it again before each replay and writes its results over these.

    `inputs` are inputs of the step. `function` may use any operation of torch.
    """
    recording = _Current.recording
    if recording is None:
        return function(*inputs)
    with torch._C.DisableTorchFunction():
        results = function(*inputs)

        def refresh(_: ForwardBatch) -> None:
            for result, new in zip(results, function(*inputs), strict=True):
                result.copy_(new)

        recording.refreshes.append(refresh)
        return results


def before_replay(refresh: Refresh) -> None:
    """Call `refresh` with the batch before each replay of the recording that is being written, if one is."""
    if _Current.recording is not None:
        _Current.recording.refreshes.append(refresh)
