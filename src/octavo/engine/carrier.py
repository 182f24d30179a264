"""Weights on their way from mapped files to a device: several threads read pages into pinned memory, the device fetches them.

Reading a mapped file waits for the disk or copies from the page cache, at a few GB/s per thread; a device takes several
times that from pinned memory, and none of it beside the host from memory that is not. Each thread has two buffers, one of
which it fills while the device reads the other.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from octavo.engine.device import Device, Mark

NUM_THREADS = 4
PIECE_BYTES = 32 << 20


class _Buffers(threading.local):
    """One thread's."""

    def __init__(self, device: Device, num_bytes: int) -> None:
        self.device = device
        self.turns: list[tuple[torch.Tensor, Mark | None]] = [
            (device.staging(num_bytes), None) for _ in range(2)
        ]

    def take(self) -> torch.Tensor:
        """The one that the device has read."""
        buffer, read = self.turns.pop(0)
        if read is not None:
            read.synchronize()
        return buffer

    def give(self, buffer: torch.Tensor) -> None:
        """The device was told to read it."""
        self.turns.append((buffer, self.device.mark()))


class WeightCarrier:
    """Carries tensors of the host to places on a device, by and by; `finish` waits for them. Owner: the start-up."""

    def __init__(
        self, device: Device, *, num_threads: int = NUM_THREADS, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._device = device
        self._piece_bytes = piece_bytes
        self._buffers = _Buffers(device, piece_bytes)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="octavo-weights")
        self._pieces: list[Future[None]] = []

    def carry(self, place: torch.Tensor, source: torch.Tensor) -> None:
        """Begin to copy `source` to `place`, in its dtype. Neither may change before `finish`."""
        if not (place.is_contiguous() and source.is_contiguous()):
            place.copy_(source)
            return
        flat_place, flat_source = place.view(-1), source.view(-1)
        size = max(1, self._piece_bytes // place.element_size())
        for start in range(0, source.numel(), size):
            piece = flat_place[start : start + size], flat_source[start : start + size]
            self._pieces.append(self._pool.submit(self._copy, *piece))

    def _copy(self, place: torch.Tensor, source: torch.Tensor) -> None:
        buffer = self._buffers.take()
        staged = buffer[: place.numel() * place.element_size()].view(place.dtype)
        with torch.inference_mode():
            staged.copy_(source)
            place.copy_(staged, non_blocking=True)
        self._buffers.give(buffer)

    def finish(self) -> None:
        """Wait for all of it.

        Raises:
            Exception: what went wrong in a thread, the first of it.
        """
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            piece.result()
        self._device.mark().synchronize()

    def close(self) -> None:
        """Give threads and pinned memory back."""
        self._pool.shutdown(cancel_futures=True)
