"""A model run step by step by hand, as the engine would; for tests of models and of kernels beneath whole models."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import torch

from octavo.cache.pool import KVPool
from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE
from octavo.models.load import LoadedModel


@dataclass
class Driver:
    """Runs a model step by step by hand, as the engine would; block ids are drawn at random and never adjacent."""

    loaded: LoadedModel
    max_sequences: int = 4
    max_tokens: int = 160
    lengths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        per_sequence = -(-self.max_tokens // BLOCK_SIZE)
        num_blocks = 1 + self.max_sequences * per_sequence
        groups = tuple(
            msgspec.structs.replace(g, num_blocks=num_blocks) for g in self.loaded.groups
        )
        self.pool = KVPool(groups, self.loaded.facts.num_layers, torch.device("cpu"))
        self.tables = []
        for index, _ in enumerate(groups):
            ids = list(range(1, num_blocks))
            random.Random(index).shuffle(ids)
            self.tables.append(torch.tensor(ids, dtype=torch.int32).view(self.max_sequences, -1))

    @torch.inference_mode()
    def step(self, pieces: list[tuple[int, list[int]]]) -> torch.Tensor:
        """Run (sequence, tokens) slices; logits of every row [T, V]."""
        starts, tokens, positions = [0], [], []
        for sequence, ids in pieces:
            first = self.lengths.get(sequence, 0)
            tokens += ids
            positions += range(first, first + len(ids))
            starts.append(len(tokens))
            self.lengths[sequence] = first + len(ids)
        rows = [s for s, ids in pieces for _ in ids]
        positions_T = torch.tensor(positions)
        batch = ForwardBatch(
            token_ids_T=torch.tensor(tokens),
            positions_T=positions_T,
            query_starts=tuple(starts),
            context_lens=tuple(self.lengths[sequence] for sequence, _ in pieces),
            groups=tuple(self._group(table, pieces, rows, positions_T) for table in self.tables),
            logits_rows_N=torch.arange(len(tokens)),
        )
        hidden_TD = self.loaded.model.forward(batch, self.pool)
        return self.loaded.model.logits(hidden_TD[batch.logits_rows_N])

    def _group(
        self,
        table: torch.Tensor,
        pieces: list[tuple[int, list[int]]],
        rows: list[int],
        positions_T: torch.Tensor,
    ) -> GroupBatch:
        blocks_T = table[torch.tensor(rows), positions_T // BLOCK_SIZE].long()
        return GroupBatch(
            slots_T=blocks_T * BLOCK_SIZE + positions_T % BLOCK_SIZE,
            block_tables_SB=table[torch.tensor([sequence for sequence, _ in pieces])],
        )

    def greedy(self, prompts: list[list[int]], count: int, chunk: int = 10**6) -> list[list[int]]:
        """Greedy tokens of all prompts together: chunks of up to `chunk`, then decodes, as each gets there."""
        todo = {i: list(prompt) for i, prompt in enumerate(prompts)}
        out: list[list[int]] = [[] for _ in prompts]
        while todo:
            pieces = [(i, ids[:chunk]) for i, ids in todo.items()]
            logits_TV = self.step(pieces)
            row = -1
            for i, ids in pieces:
                row += len(ids)
                todo[i] = todo[i][len(ids) :]
                if not todo[i]:
                    out[i].append(int(logits_TV[row].argmax()))
                    todo[i] = out[i][-1:]
                    if len(out[i]) == count:
                        del todo[i]
        return out
