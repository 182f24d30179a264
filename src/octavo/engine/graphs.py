"""Forward passes that are replayed: those of steps with one token per sequence. Here on the CPU, where they were recorded;
`captured.py` has those of a device.

Such steps differ only in what is in their inputs, so there is one recording per number of sequences, written when a step
of that size is run for the first time. Results are the same bits either way.
"""

from __future__ import annotations

from typing import Protocol

import torch

from octavo.core import log
from octavo.core.batch import ForwardBatch
from octavo.kernels.recording import Arena, Recording
from octavo.layers.attention import Parts

logger = log.get_logger(__name__)


class Network(Protocol):
    """A network over the caches of its engine."""

    def forward(self, batch: ForwardBatch, /) -> torch.Tensor:
        """Hidden states [T, D]."""
        ...

    def parts(self, batch: ForwardBatch, /) -> Parts:
        """As `forward`, stopping wherever it looks at other rows."""
        ...


class StepGraphs(Protocol):
    """Runs forward passes, replaying those that it can."""

    def run(self, network: Network, batch: ForwardBatch, /) -> torch.Tensor:
        """`network.forward(batch)`, hidden states [T, D]. The result is good until the next call."""
        ...

    def go_on(self, network: Network, /, *, is_idle: bool = False) -> bool:
        """Prepare later replays for a moment, while the host is about to wait; whether there is more to do."""
        ...


class RecordedSteps:
    """Recordings by number of sequences. Owner: the runner of one rank.

    A step's tensors of one size are always the same ones (`Rows.pack`), written anew.
    """

    def __init__(self, refusal: str | None) -> None:
        """`refusal`: why nothing is recorded; None to try."""
        self.refusal = refusal
        self._arena = Arena()
        self._recordings: dict[int, tuple[torch.Tensor, Recording]] = {}

    def go_on(self, network: Network, *, is_idle: bool = False) -> bool:
        """Recordings are written as steps run."""
        return False

    def run(self, network: Network, batch: ForwardBatch) -> torch.Tensor:
        """`network.forward(batch)`, replayed where it was recorded. The result is good until the next call."""
        num_rows = batch.num_slices
        is_alike = batch.num_tokens == num_rows and batch.type_ids_T is None
        if self.refusal is not None or not is_alike:
            return network.forward(batch)
        token_ids_T, recording = self._recordings.get(num_rows, (None, None))
        if recording is not None and token_ids_T is batch.token_ids_T:
            try:
                return recording.replay(batch)
            except BaseException:
                del self._recordings[num_rows]  # who knows what its buffers hold
                raise
        recording = Recording(self._arena)
        hidden_TD = recording.write(lambda: network.forward(batch))
        if recording.refusal is None:
            self._recordings[num_rows] = (batch.token_ids_T, recording)
        else:
            self.refusal = recording.refusal
            logger.info("steps are not recorded: %s", self.refusal)
        return hidden_TD
