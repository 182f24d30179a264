"""Steps as a device's captured graphs: one program per size, padded up to it.

Steps of one token per sequence are captured whole; small ones of any other kind in pieces, with attention in between
(`program.py`). A step of a size is run eagerly at first, on the buffers of its size, so that what kernels make on first use is
made. When the size comes again it is captured, some layers at a time, on the loop's own thread: while the device is at work
and the host is about to wait for it, with rests in between, or when there is nothing to do. No step waits for more than
`SLICE_S` and a layer, and nothing is captured beyond the memory that the plan has for it.

Padding rows are token 0 at position 0 of nobody: they write to the null block, read it, and nobody reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.log import get_logger
from octavo.engine.buckets import bucket_of, sizes, token_sizes
from octavo.engine.device import Device
from octavo.engine.graphs import Network
from octavo.engine.kept import Bridges, Inputs, KeptPlans, Room
from octavo.engine.measure import full_lengths, null_step
from octavo.engine.program import Making, PieceProgram, Program, ReplayError, through_pieces

logger = get_logger(__name__)

SLICE_S = 0.004
"""Seconds after which a capture stops for now, at the next layer: a fraction of what a token takes that is read by people."""
_REST = 20.0
"""Times what a slice took, in which there is no other: streams that run lose a twentieth of their pace to them, at most."""


@dataclass(slots=True, eq=False)
class _Size:
    """One size, whole (with plans) or in pieces (without)."""

    size: int
    plans: KeptPlans | None
    num_runs: int = 0
    batch: ForwardBatch | None = None
    """The kept inputs, as the step that was last run eagerly."""
    program: Program | PieceProgram | None = None
    is_uploaded: bool = False
    """Whether it was replayed: the first time the driver takes memory for it."""


class CapturedSteps:
    """As `StepGraphs`. Owner: the runner of one rank."""

    def __init__(
        self,
        device: Device,
        room: Room,
        refusal: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refusal`: why nothing is captured; None to try."""
        self.refusal = refusal
        self.num_bytes = 0
        """What programs and what they share have taken."""
        self.num_captured = 0
        self._device = device
        self._room = room
        self._whole_sizes = sizes(room.max_num_seqs)
        self._piece_sizes = token_sizes(room.piece_tokens)
        self._whole: dict[int, _Size] = {}
        self._pieces: dict[int, _Size] = {}
        self._wanted: dict[_Size, None] = {}
        """What came again and is not captured, in the order in which it came."""
        self._inputs: Inputs | None = None
        self._bridges = Bridges(max(self._piece_sizes, default=0))
        self._making: tuple[_Size, Making] | None = None
        self._most_each = 0
        """Of any program so far."""
        self._clock = clock
        self._not_before = clock()

    def run(self, network: Network, batch: ForwardBatch) -> torch.Tensor:
        """`network.forward(batch)`, replayed where it was captured. The result is good until the next call."""
        step = self._size_of(batch)
        if step is None or (self.refusal is not None and step.program is None):
            return network.forward(batch)
        count = batch.num_tokens
        if isinstance(step.program, PieceProgram):
            self._kept_inputs().load_pieces(batch, step.size)
            self._bridges.pad(count, step.size)
        elif step.plans is not None:
            step.batch = self._kept_inputs().load(batch, step.size, step.plans)
        if step.program is not None:
            return self._replay(step, batch)[:count]
        hidden_TD = self._run_eagerly(network, step, batch)
        step.num_runs += 1
        if step.num_runs > 1:
            self._wanted[step] = None
        return hidden_TD[:count]

    def prepare(self, network: Network) -> None:
        """Make what all programs share, and run the largest step of each kind on the null block."""
        if self.refusal is not None:
            return
        before = self._device.allocated()
        self._run_nothing(network, self._whole_size(self._whole_sizes[-1]))
        if self._piece_sizes:
            step = self._piece_size(self._piece_sizes[-1])
            groups, where = len(self._room.num_blocks), self._device.torch_device
            counts = full_lengths(step.size, self._room.max_model_len)
            self._run_eagerly(network, step, null_step(counts, groups, where))
        self.num_bytes += max(0, self._device.allocated() - before)

    def go_on(self, network: Network, *, is_idle: bool = False) -> bool:
        """Capture for a moment, if it is time to; where there is nothing else to do, also what nobody has asked for yet.
        Whether there is more to do.
        """
        begun = self._clock()
        if self.refusal is not None or (not is_idle and begun < self._not_before):
            return False
        try:
            if self._making is None and not self._begin(network, is_idle=is_idle):
                return False
            if self._making is None:  # a size was run, which may have taken long enough
                return True
            step, making = self._making
            before = making.num_bytes
            program = making.go_on(lambda: self._clock() >= begun + SLICE_S)
        except Exception as error:  # edge of the device: steps run eagerly then
            self._refuse(f"a capture failed: {error}")
            return False
        ended = self._clock()
        self._not_before = ended + _REST * (ended - begun)
        self.num_bytes += making.num_bytes - before
        if program is not None:
            self._done(step, making, program)
        elif self.num_bytes > self._room.num_bytes:
            self._refuse_more(making.num_bytes)
        return self.refusal is None

    def _size_of(self, batch: ForwardBatch) -> _Size | None:
        """None: such steps are not captured."""
        count = batch.num_tokens
        if batch.type_ids_T is not None or not count:
            return None
        if count == batch.num_slices:
            known = self._whole_sizes
            return self._whole_size(bucket_of(count, known)) if count <= known[-1] else None
        if not self._piece_sizes or count > self._piece_sizes[-1]:
            return None
        return self._piece_size(bucket_of(count, self._piece_sizes))

    def _whole_size(self, size: int) -> _Size:
        if size not in self._whole:
            largest = self._whole.get(self._whole_sizes[-1])
            plans = KeptPlans(size, self._room, None if largest is None else largest.plans)
            self._whole[size] = _Size(size, plans)
        return self._whole[size]

    def _piece_size(self, size: int) -> _Size:
        return self._pieces.setdefault(size, _Size(size, None))

    def _kept_inputs(self) -> Inputs:
        if self._inputs is None:
            self._inputs = Inputs(self._room, self._device.torch_device)
        return self._inputs

    def _run_eagerly(self, network: Network, step: _Size, batch: ForwardBatch) -> torch.Tensor:
        """On the kept inputs, where `batch` is already if the step is whole."""
        if step.plans is not None:
            assert step.batch is not None, "it was loaded"
            return network.forward(step.batch)
        step.batch = self._kept_inputs().load_pieces(batch, step.size)
        self._bridges.pad(batch.num_tokens, step.size)
        return through_pieces(network.parts(step.batch), self._bridges, batch)

    def _run_nothing(self, network: Network, step: _Size) -> None:
        assert step.plans is not None, "of steps that are captured whole"
        step.batch = self._kept_inputs().load(None, step.size, step.plans)
        network.forward(step.batch)
        step.num_runs += 1

    def _replay(self, step: _Size, batch: ForwardBatch) -> torch.Tensor:
        program = step.program
        assert program is not None, "asked before"
        before = 0 if step.is_uploaded else self._device.held()
        try:
            if isinstance(program, Program):
                hidden_TD = program.replay()
            else:
                hidden_TD = program.replay(batch)
        except ReplayError:
            # Who knows what its buffers hold.
            (self._whole if step.plans is not None else self._pieces).pop(step.size, None)
            raise
        if not step.is_uploaded:
            step.is_uploaded = True
            self.num_bytes += max(0, self._device.held() - before)
        return hidden_TD

    def _begin(self, network: Network, *, is_idle: bool) -> bool:
        """Whether there is something to capture: what came again, or, with nothing to do, the smallest size that did not."""
        if not self._wanted and is_idle:
            for size in self._whole_sizes:
                step = self._whole_size(size)
                if step.program is None:
                    self._wanted[step] = None
                    if not step.num_runs:
                        self._run_nothing(network, step)
                        return True
                    break
        if not self._wanted:
            return False
        if self.num_bytes + self._most_each > self._room.num_bytes:
            self._refuse_more(self._most_each)
            return False
        step = next(iter(self._wanted))
        del self._wanted[step]
        assert step.batch is not None, "it was run"
        bridges = self._bridges if step.plans is None else None
        making = Making(self._device, network.parts(step.batch), step.size, bridges)
        self._making = step, making
        return True

    def _done(self, step: _Size, making: Making, program: Program | PieceProgram) -> None:
        step.program, step.batch, self._making = program, None, None
        self.num_captured += 1
        if not self._wanted and self.num_captured >= len(self._whole_sizes):
            logger.info(
                "captured %d sizes of steps: %d MiB planned, %d taken",
                self.num_captured,
                self._room.num_bytes >> 20,
                self.num_bytes >> 20,
            )
        self._most_each = max(self._most_each, making.num_bytes)
        what = "sequences" if step.plans is not None else "tokens in pieces"
        logger.debug("captured steps of up to %d %s: %d bytes", step.size, what, making.num_bytes)

    def _refuse_more(self, more: int) -> None:
        self._refuse(
            f"captured steps take {self.num_bytes} bytes of {self._room.num_bytes}, and another up to {more}"
        )

    def _refuse(self, reason: str) -> None:
        self.refusal = reason
        self._making = None
        self._wanted.clear()
        logger.warning("no more steps are captured: %s", reason)
