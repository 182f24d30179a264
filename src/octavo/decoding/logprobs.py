"""Log-probabilities of tokens under the raw logits: before edits, temperature and truncation, in
float32.

Shape letters: N rows, V vocabulary, C rows of one chunk, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.core.result import TokenLogprobs

_CHUNK_VALUES = 1 << 24
"""Float32 values of one chunk (64 MiB): a second copy of a whole prompt's logits may not fit."""


def token_logprobs(
    logits_NV: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int | None]
) -> list[TokenLogprobs | None]:
    """Log-probability and rank of one token per row, and of the most likely tokens.

    Equal logits share the better rank, and among the most likely stand in the order of their ids. A
    token with a logit of -inf has a log-probability of -inf.

    Args:
        logits_NV: raw logits, any float dtype [N, V].
        token_ids: [N], the token at hand in each row.
        num_top: [N], how many of the most likely tokens to add; None for rows that want nothing.
    """
    results: list[TokenLogprobs | None] = [None] * len(num_top)
    wanted = [(n, count) for n, count in enumerate(num_top) if count is not None]
    size = max(1, _CHUNK_VALUES // max(1, logits_NV.shape[1]))
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        rows = torch.tensor([n for n, _ in chunk], device=logits_NV.device)
        entries = _chunk_logprobs(
            logits_NV.index_select(0, rows).float(),
            [token_ids[n] for n, _ in chunk],
            [count for _, count in chunk],
        )
        for (n, _), entry in zip(chunk, entries, strict=True):
            results[n] = entry
    return results


def _chunk_logprobs(
    logits_CV: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]
) -> list[TokenLogprobs]:
    chosen_C1 = torch.tensor(token_ids, device=logits_CV.device)[:, None]
    ranks = ((logits_CV > logits_CV.gather(1, chosen_C1)).sum(1) + 1).tolist()
    top_CK = _most_likely(logits_CV, min(max(counts), logits_CV.shape[1]))
    ids_CJ = torch.cat([chosen_C1, top_CK], 1)
    logprobs_CJ = torch.log_softmax(logits_CV, 1).gather(1, ids_CJ)
    return [
        TokenLogprobs(tuple(ids[: 1 + count]), tuple(logprobs[: 1 + count]), rank)
        for ids, logprobs, rank, count in zip(
            ids_CJ.tolist(), logprobs_CJ.tolist(), ranks, counts, strict=True
        )
    ]


def _most_likely(logits_CV: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [C, count]: ids by descending logit, then ascending id.

    `torch.topk` promises nothing about ties. One value more than wanted shows whether a tie crosses
    the cut; if so, a stable sort of the whole rows settles it.
    """
    if count == 0:
        return torch.empty((logits_CV.shape[0], 0), dtype=torch.int64, device=logits_CV.device)
    num_seen = min(count + 1, logits_CV.shape[1])
    values_CK, ids_CK = logits_CV.topk(num_seen, dim=1)
    if num_seen > count and bool((values_CK[:, count - 1] == values_CK[:, count]).any()):
        return logits_CV.sort(dim=1, descending=True, stable=True).indices[:, :count]
    ids_CK, by_id = ids_CK.sort(dim=1)
    by_value = values_CK.gather(1, by_id).sort(dim=1, descending=True, stable=True).indices
    return ids_CK.gather(1, by_value)[:, :count]
