"""What is carried in pieces by several threads is what one copy would have made of it."""

from __future__ import annotations

import pytest
import torch

from fake_device import FakeDevice
from octavo.engine.carrier import WeightCarrier


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_pieces_arrive_in_the_dtype_of_their_place(dtype: torch.dtype) -> None:
    sources = [torch.randn(size, 7) for size in (1, 3, 1000, 64)]
    merged = torch.full((1068, 7), torch.nan, dtype=dtype)
    carrier = WeightCarrier(FakeDevice(), num_threads=3, piece_bytes=100)
    start = 0
    for source in sources:
        carrier.carry(merged[start : start + len(source)], source)
        start += len(source)
    carrier.finish()
    assert torch.equal(merged, torch.cat(sources).to(dtype))
    carrier.close()


def test_what_is_not_in_one_piece_is_copied_at_once() -> None:
    place, source = torch.zeros(4, 6), torch.randn(6, 4)
    carrier = WeightCarrier(FakeDevice(), piece_bytes=8)
    carrier.carry(place, source.t())
    carrier.finish()
    assert torch.equal(place, source.t())
    carrier.close()


def test_a_piece_that_fails_is_told() -> None:
    device = FakeDevice()
    carrier = WeightCarrier(device, num_threads=1, piece_bytes=64)
    device.errors.append(RuntimeError("the bus is gone"))
    carrier.carry(torch.zeros(1000), torch.randn(1000))
    with pytest.raises(RuntimeError, match="the bus is gone"):
        carrier.finish()
    carrier.close()
