"""What is sent in one copy is what was packed, for as many steps as may be under way."""

from __future__ import annotations

import pytest
import torch

from fake_device import FakeDevice
from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.engine.staging import Staging


def batch(rng: torch.Generator, tokens: int, width: int, *, pairs: bool) -> ForwardBatch:
    def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(0, 1 << 30, shape, generator=rng).to(dtype)

    groups = tuple(
        GroupBatch(
            slots_T=numbers(tokens), block_tables_SB=numbers(tokens, width, dtype=torch.int32)
        )
        for _ in range(2)
    )
    return ForwardBatch(
        token_ids_T=numbers(tokens),
        positions_T=numbers(tokens),
        query_starts=tuple(range(tokens + 1)),
        context_lens=(width * 16,) * tokens,
        groups=groups,
        logits_rows_N=numbers(max(1, tokens // 2)),
        type_ids_T=numbers(tokens) if pairs else None,
    )


def tensors(of: ForwardBatch) -> list[torch.Tensor]:
    found = [of.token_ids_T, of.positions_T, of.logits_rows_N]
    for group in of.groups:
        found += [group.slots_T, group.block_tables_SB]
    return found if of.type_ids_T is None else [*found, of.type_ids_T]


@pytest.mark.parametrize("pairs", [False, True])
def test_all_arrive_in_one_copy(pairs: bool) -> None:
    rng = torch.Generator().manual_seed(3)
    device = FakeDevice()
    staging = Staging(device, num_slots=3)
    sent: list[tuple[ForwardBatch, torch.Tensor, ForwardBatch, torch.Tensor]] = []
    for tokens, width in ((1, 1), (5, 3), (300, 70), (2, 9), (64, 128)):
        given, rows = batch(rng, tokens, width, pairs=pairs), torch.arange(tokens)
        there, (rows_there,) = staging.carry(given, rows)
        sent = [*sent[-2:], (given, rows, there, rows_there)]
        for wanted, wanted_rows, got, got_rows in sent:  # those of the last three steps are good
            assert torch.equal(wanted_rows, got_rows)
            for one, other in zip(tensors(wanted), tensors(got), strict=True):
                assert torch.equal(one, other)
                assert one.dtype == other.dtype
            assert got.context_lens == wanted.context_lens
    assert device.num_waits == 2  # five steps through three slots
