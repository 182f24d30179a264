"""A step's arrays on their way to a device: one copy out of memory that the device can read by itself.

Every copy costs the host some microseconds and the bus a transaction, however small it is; a step has half a dozen
arrays of a few KiB. They are laid side by side and sent at once, into memory on the device that stays. Slots take turns,
so that the host can pack a step while the one before it is still being read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.engine.device import Device, Mark

_ALIGNMENT = 256
"""Bytes between arrays: of a transaction, and whole numbers of every dtype."""
_MIN_BYTES = 1 << 16


class _Slot:
    """Memory on both sides."""

    def __init__(self) -> None:
        self.host = self.there = torch.empty(0, dtype=torch.uint8)
        self.read: Mark | None = None
        """When the device has read what was last sent from here."""


class Staging:
    """Owner: the runner of one rank."""

    def __init__(self, device: Device, num_slots: int = 3) -> None:
        """`num_slots`: steps that may be under way at once, and one that is being packed."""
        self._device = device
        self._slots = [_Slot() for _ in range(num_slots)]
        self._turn = 0

    def carry(
        self, batch: ForwardBatch, *more: torch.Tensor
    ) -> tuple[ForwardBatch, tuple[torch.Tensor, ...]]:
        """The batch, and other tensors of the host, on the device; good until as many steps later as there are slots."""
        arrays = [batch.token_ids_T, batch.positions_T, batch.logits_rows_N]
        arrays += [group.slots_T for group in batch.groups]
        arrays += [group.block_tables_SB for group in batch.groups]
        arrays += [] if batch.type_ids_T is None else [batch.type_ids_T]
        sent = self._send([*arrays, *more])
        num_groups = len(batch.groups)
        slots, tables = sent[3 : 3 + num_groups], sent[3 + num_groups : 3 + 2 * num_groups]
        there = replace(
            batch,
            token_ids_T=sent[0],
            positions_T=sent[1],
            logits_rows_N=sent[2],
            groups=tuple(
                GroupBatch(slots_T=slots_T, block_tables_SB=tables_SB)
                for slots_T, tables_SB in zip(slots, tables, strict=True)
            ),
            type_ids_T=None if batch.type_ids_T is None else sent[3 + 2 * num_groups],
        )
        return there, tuple(sent[len(arrays) :])

    def _send(self, arrays: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        places, end = [], 0
        for array in arrays:
            places.append((end, end + array.numel() * array.element_size()))
            end = -(-places[-1][1] // _ALIGNMENT) * _ALIGNMENT
        slot = self._next(end)
        for array, (first, last) in zip(arrays, places, strict=True):
            slot.host[first:last].view(array.dtype).view(array.shape).copy_(array)
        slot.there[:end].copy_(slot.host[:end], non_blocking=True)
        slot.read = self._device.mark()
        return [
            slot.there[first:last].view(array.dtype).view(array.shape)
            for array, (first, last) in zip(arrays, places, strict=True)
        ]

    def _next(self, num_bytes: int) -> _Slot:
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        if slot.read is not None:
            slot.read.synchronize()
        if slot.host.numel() < num_bytes:
            room = max(_MIN_BYTES, 1 << (num_bytes - 1).bit_length())
            slot.host = self._device.staging(room)
            slot.there = torch.empty(room, dtype=torch.uint8, device=self._device.torch_device)
        return slot
