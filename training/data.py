"""Batches of token windows from the token files, in an order fixed by the seed and the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class WindowStream:
    """Windows of one token file. Each epoch covers the file once, from a fresh random offset.

    The order depends on (seed, epoch, length) alone, so a resumed run only needs `drawn_tokens`.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.tokens = np.fromfile(path, dtype=np.uint16)
        self.seed = seed
        self.drawn_tokens = 0

    def windows(self, count: int, length: int) -> np.ndarray:
        """`count` windows of `length` + 1 tokens: the inputs and, shifted by one, the targets."""
        rows = []
        per_epoch = (len(self.tokens) - 1) // length - 1
        for _ in range(count):
            epoch, index = divmod(self.drawn_tokens // length, per_epoch)
            rng = np.random.default_rng((self.seed, epoch, length))
            start = rng.integers(length) + rng.permutation(per_epoch)[index] * length
            rows.append(self.tokens[start : start + length + 1])
            self.drawn_tokens += length
        return np.stack(rows).astype(np.int64)


class Mixture:
    """Batches with a given share of chat rows; the rest are source files and documentation."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.base = WindowStream(folder / "base.bin", seed)
        self.chat = WindowStream(folder / "chat.bin", seed + 1)
        self._rng = np.random.default_rng(seed)

    def batch(self, rows: int, length: int, chat_share: float) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each [rows, length]."""
        num_chat = int(self._rng.binomial(rows, chat_share))
        parts = [self.base.windows(rows - num_chat, length)] if num_chat < rows else []
        if num_chat:
            parts.append(self.chat.windows(num_chat, length))
        windows = torch.from_numpy(np.concatenate(parts))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"base": self.base.drawn_tokens, "chat": self.chat.drawn_tokens}

    def restore(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken; the choice of chat rows alone is drawn anew."""
        self.base.drawn_tokens, self.chat.drawn_tokens = state["base"], state["chat"]


def heldout_batch(folder: Path, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced windows of the held-out files, the same at every call."""
    tokens = np.fromfile(folder / "heldout.bin", dtype=np.uint16).astype(np.int64)
    starts = np.linspace(0, len(tokens) - length - 2, rows).astype(int)
    windows = torch.from_numpy(np.stack([tokens[s : s + length + 1] for s in starts]))
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
