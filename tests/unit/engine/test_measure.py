"""The largest step is one that the limits allow and that a model can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_engine import write_tiny
from octavo.engine.device import Host
from octavo.engine.measure import activation_bytes, largest_step
from octavo.models.load import load_model
from octavo.scheduler.limits import Limits


class Counting(Host):
    """Says what it is told to have measured."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks = [0, 7_000_000]

    def allocated(self, *, peak: bool = False) -> int:
        return self.peaks.pop(0) if peak else 1_000_000


def limits(tokens: int, seqs: int, length: int) -> Limits:
    return Limits(max_num_seqs=seqs, max_num_batched_tokens=tokens, max_model_len=length)


@pytest.mark.parametrize(
    ("tokens", "seqs", "length", "lens"),
    [
        (100, 4, 40, (40, 40, 20)),
        (100, 2, 40, (40, 40)),
        (64, 4, 512, (64,)),
        (80, 4, 40, (40, 40)),
    ],
)
def test_as_many_tokens_as_limits_allow(
    tokens: int, seqs: int, length: int, lens: tuple[int, ...]
) -> None:
    batch = largest_step(limits(tokens, seqs, length), 2, Host().torch_device)
    assert batch.context_lens == lens
    assert batch.num_tokens == sum(lens) == len(batch.token_ids_T) == len(batch.positions_T)
    assert int(batch.positions_T.max()) == max(lens) - 1
    assert all(int(group.slots_T.max()) < 16 for group in batch.groups)  # the null block alone


def test_a_model_runs_it(tmp_path: Path) -> None:
    loaded = load_model(write_tiny(tmp_path), load_format="dummy")
    found = activation_bytes(loaded.model, loaded.groups, limits(100, 4, 40), Counting())
    assert found == 6_000_000
