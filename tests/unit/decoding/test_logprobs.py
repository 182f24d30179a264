"""Log-probabilities: those of torch.log_softmax, with the right rank and order."""

from __future__ import annotations

import pytest
import torch

from octavo.decoding import logprobs
from octavo.decoding.logprobs import token_logprobs


def test_equal_log_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_VALUES", 300)  # several chunks of three rows
    logits_NV = torch.randn(11, 100) * 5
    token_ids = torch.randint(0, 100, (11,)).tolist()
    num_top = [None, 0, 5, 20, 1, None, 3, 100, 2, 7, 0]
    expected_NV = torch.log_softmax(logits_NV, 1)
    entries = token_logprobs(logits_NV, token_ids, num_top)
    for n, (entry, count) in enumerate(zip(entries, num_top, strict=True)):
        if count is None:
            assert entry is None
            continue
        assert entry is not None
        order = expected_NV[n].argsort(descending=True).tolist()
        assert entry.token_ids == (token_ids[n], *order[:count])
        assert entry.rank == order.index(token_ids[n]) + 1
        assert entry.logprobs == tuple(expected_NV[n][list(entry.token_ids)].tolist())


def test_ties_go_by_id_and_share_a_rank() -> None:
    logits_NV = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0, 1.0]])
    for count, expected in ((1, (1,)), (2, (1, 2)), (4, (1, 2, 4, 0)), (9, (1, 2, 4, 0, 5, 3))):
        entry = token_logprobs(logits_NV, [5], [count])[0]
        assert entry is not None
        assert entry.token_ids == (5, *expected)
        assert entry.rank == 4


def test_bfloat16_and_minus_infinity() -> None:
    logits_NV = torch.tensor([[0.0, -torch.inf, 0.0]], dtype=torch.bfloat16)
    entry = token_logprobs(logits_NV, [1], [1])[0]
    assert entry is not None
    assert entry.logprobs == (-torch.inf, pytest.approx(-0.693147, abs=1e-6))
    assert entry.rank == 3


def test_nothing_wanted() -> None:
    assert token_logprobs(torch.zeros(2, 4), [0, 0], [None, None]) == [None, None]
    assert token_logprobs(torch.zeros(0, 4), [], []) == []
