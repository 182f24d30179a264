"""What a step takes of a GPU's memory, measured before the KV cache takes the rest.

The largest step that limits allow is run once on the null block: nobody's tokens, which nobody reads.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.cache.pool import KVPool
from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVGroup
from octavo.engine.device import Device
from octavo.models.base import Model, Trunk
from octavo.scheduler.limits import Limits

MIB = 1 << 20


def measured_text(planned: int, measured: int) -> str:
    """Predicted against measured; what cannot be measured is as planned."""
    if not measured:
        return f"{planned / MIB:.0f} MiB"
    off = (measured - planned) / planned if planned else 0.0
    return f"{planned / MIB:.0f} MiB planned, {measured / MIB:.0f} measured ({off:+.1%})"


@torch.inference_mode()
def activation_bytes(
    model: Trunk | Model, groups: tuple[KVGroup, ...], limits: Limits, device: Device
) -> int:
    """Most bytes of temporaries in the largest step: all its tokens through the model, then logits of every row."""
    where = device.torch_device
    nulls = tuple(KVGroup(spec=g.spec, layers=g.layers, num_blocks=1) for g in groups)
    pool = KVPool(nulls, sum(len(group.layers) for group in groups), where)
    batch = largest_step(limits, len(groups), where)
    device.mark().synchronize()
    device.allocated(peak=True)
    before = device.allocated()
    hidden_TD = model.forward(batch, pool)
    if hasattr(model, "logits"):
        # And the copy that edits would make of them.
        model.logits(hidden_TD[: limits.max_num_seqs]).clone()
    device.mark().synchronize()
    return device.allocated(peak=True) - before


def largest_step(limits: Limits, num_groups: int, device: torch.device) -> ForwardBatch:
    """A step of as many tokens as limits allow, in as few sequences as they fit into, all on the null block."""
    total, longest = limits.max_num_batched_tokens, limits.max_model_len
    counts = full_lengths(total, longest)[: limits.max_num_seqs]
    rows = min(sum(counts), limits.max_num_seqs)
    return replace(
        null_step(counts, num_groups, device), logits_rows_N=torch.arange(rows, device=device)
    )


def full_lengths(total: int, longest: int) -> list[int]:
    """So many tokens in as few sequences as they fit into."""
    rest = total % longest
    return [longest] * (total // longest) + [rest] * (rest > 0)


def null_step(counts: list[int], num_groups: int, device: torch.device) -> ForwardBatch:
    """A step of sequences from their beginnings, so many tokens of each, all on the null block. No logits are wanted."""
    total = sum(counts)
    positions_T = torch.cat([torch.arange(count) for count in counts]).to(device)
    width = -(-max(counts) // BLOCK_SIZE)
    group = GroupBatch(
        slots_T=positions_T % BLOCK_SIZE,
        block_tables_SB=torch.zeros(len(counts), width, dtype=torch.int32, device=device),
    )
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return ForwardBatch(
        token_ids_T=torch.zeros(total, dtype=torch.int64, device=device),
        positions_T=positions_T,
        query_starts=tuple(starts),
        context_lens=tuple(counts),
        groups=(group,) * num_groups,
        logits_rows_N=torch.empty(0, dtype=torch.int64, device=device),
    )
