"""The tensors behind block ids: one `KVTensors` per layer. Knows nothing of who holds which block."""

from __future__ import annotations

import math

import numpy as np
import torch

from octavo.cache.pages import PagesAhead, Region
from octavo.core.kvspec import BLOCK_SIZE, KVGroup
from octavo.core.plan import BlockCopy, StepPlan
from octavo.kernels.kv import LARGEST, KVTensors


class KVPool:
    """Keys and values of every layer on one device. Owner: the runner.

    Layout per layer: k and v each [num_blocks, BLOCK_SIZE, num_kv_heads, head_dim] in the spec's dtype, zero at first,
    because masked positions are multiplied by zero and must not hold NaN.
    """

    def __init__(
        self,
        groups: tuple[KVGroup, ...],
        num_layers: int,
        device: torch.device,
    ) -> None:
        self.groups = groups
        self.device = device
        by_layer: dict[int, KVTensors] = {}
        for group in groups:
            for layer in group.layers:
                by_layer[layer] = _empty_cache(group, device)
        assert sorted(by_layer) == list(range(num_layers)), "every layer in exactly one group"
        self._layers = tuple(by_layer[layer] for layer in range(num_layers))
        self.pages = tuple(self._pages(group) for group in groups) if device.type == "cpu" else ()

    def layer(self, index: int) -> KVTensors:
        """Keys and values of a layer, which may be written."""
        return self._layers[index]

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says of blocks: copies, and which are handed out."""
        for copy in plan.copies:
            self.copy(copy)
        growth = plan.growth
        grown = plan.grown.values() if growth is None else ()
        if growth is None and not grown and not plan.starts:
            return
        for at, pages in enumerate(self.pages):
            new = [max(piece.new_blocks[at], default=0) for piece in grown]
            new += [max(start.blocks[at], default=0) for start in plan.starts]
            if growth is not None:
                new.append(int(growth.blocks_GP[at].max()))
            if new:
                pages.reach(max(new))

    def expect(self, num_tokens: int) -> None:
        """Begin to find the memory that so many tokens will take."""
        for pages in self.pages:
            pages.reach(num_tokens // BLOCK_SIZE)

    def find_pages(self, num_tokens: int) -> bool:
        """Find one piece of the memory that so many tokens will take, before they are there; whether there may be more."""
        block = num_tokens // BLOCK_SIZE
        return any(pages.find_one(block) for pages in self.pages)

    def _pages(self, group: KVGroup) -> PagesAhead:
        tensors = [t for layer in group.layers for t in self._layers[layer].tensors()]
        regions = [
            Region(t.data_ptr(), t.numel() * t.element_size(), t[0].numel() * t.element_size())
            for t in tensors
        ]
        return PagesAhead(regions, tensors)

    def copy(self, block_copy: BlockCopy) -> None:
        """Copy one block of a group, in all its layers."""
        for layer in self.groups[block_copy.group].layers:
            for tensor in self._layers[layer].tensors():
                tensor[block_copy.target].copy_(tensor[block_copy.source])

    def clear(self, block: int) -> None:
        """Zero one block in all layers."""
        for layer in self._layers:
            for tensor in layer.tensors():
                tensor[block].zero_()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for cache in self._layers for t in cache.tensors())


def _empty_cache(group: KVGroup, device: torch.device) -> KVTensors:
    spec = group.spec
    shape = (group.num_blocks, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    k, v = _zeros(shape, device, dtype), _zeros(shape, device, dtype)
    if dtype not in LARGEST:
        return KVTensors(k, v)
    return KVTensors(
        k, v, _zeros(shape[:3], device, torch.float32), _zeros(shape[:3], device, torch.float32)
    )


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A zeroed tensor. On CPU its pages come zeroed from the system when first touched, so that a large pool costs no
    start-up time and next to no memory until it is used (torch.zeros writes every page: 5 s for 1 GiB on a busy machine).
    """
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(dtype).view(shape)
