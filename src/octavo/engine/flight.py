"""What a step left behind when it was launched and its tokens are still on their way: knows tensors, not plans.

The tokens of a step go into a table on the device, from where the next step takes its inputs before the host has seen
them, and into memory of the host, which is read when the device has come so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from octavo.core.plan import Slice
from octavo.core.result import TokenLogprobs
from octavo.decoding.sampler import NOT_FINITE, SampledTokens
from octavo.engine.device import Device, Mark

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A step that was launched."""

    slices: Sequence[Slice]
    rows_N: IntArray
    """Of the entries that sample."""
    births_N: IntArray | None
    """Beside `rows_N`: whose they were. None of one that is taken before anything else can happen."""
    sampled: SampledTokens | None
    """Of a step that was waited for, else None."""
    on_host_N: torch.Tensor | None
    mark: Mark
    prompts: dict[int, list[TokenLogprobs]]

    @property
    def is_ahead(self) -> bool:
        """Whether the next step may be launched before this one is taken."""
        return self.sampled is None

    def read(self) -> SampledTokens:
        """The tokens, once the device has them."""
        if self.sampled is not None:
            return self.sampled
        self.mark.synchronize()
        assert self.on_host_N is not None, "it was launched ahead"
        token_ids_N = self.on_host_N.numpy()
        token_ids = tuple(token_ids_N.tolist())
        bad_rows = {n: NOT_FINITE for n in np.flatnonzero(token_ids_N < 0).tolist()}
        return SampledTokens(
            token_ids=token_ids, logprobs=(None,) * len(token_ids), bad_rows=bad_rows
        )


class LastTokens:
    """The token last sampled of each row, on the device. Owner: the runner."""

    def __init__(self, max_num_seqs: int, device: Device) -> None:
        self._device = device
        self._tokens_R = torch.zeros(max_num_seqs, dtype=torch.int64, device=device.torch_device)

    def fill_in(self, token_ids_T: torch.Tensor) -> None:
        """Replace -1 - row by the row's last token, in place and without asking the device for anything."""
        rows_T = (-1 - token_ids_T).clamp_(min=0)
        token_ids_T.copy_(torch.where(token_ids_T < 0, self._tokens_R[rows_T], token_ids_T))

    def give(self, rows_T: torch.Tensor, token_ids_T: torch.Tensor) -> None:
        """What `fill_in` does where the last tokens of `rows_T` are all that there is, in one go."""
        torch.index_select(self._tokens_R, 0, rows_T, out=token_ids_T)

    def put(self, rows_N: torch.Tensor, token_ids_N: torch.Tensor) -> torch.Tensor:
        """Take note of new tokens. What the host may read of them after the next mark."""
        # What is no token is none of the vocabulary's either, and nobody will use what comes of it.
        self._tokens_R.index_copy_(0, rows_N, token_ids_N.clamp(min=0))
        return token_ids_N.to("cpu", non_blocking=True)
