"""A step's computation as graphs one after the other, and how it becomes that: some layers at a time.

Whole steps: attention is in the graphs, by plans that are kept. Pieces: each graph ends where a network looks at other rows
(`layers/attention.py: Look`), attention is made there as in a step that is not captured, and the next graph goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.core.batch import ForwardBatch
from octavo.engine.device import Device, Replayable
from octavo.engine.kept import Bridges
from octavo.layers.attention import Attention, LayerCaches, Look, Parts, Step

_NO_ANGLES = torch.empty(0, 0)


class ReplayError(Exception):
    """A graph could not be launched; the cause is its cause."""


class Program:
    """What was captured of one size."""

    def __init__(self, graphs: list[Replayable], hidden_TD: torch.Tensor) -> None:
        self.graphs = graphs
        self.hidden_TD = hidden_TD

    def replay(self) -> torch.Tensor:
        """Hidden states of all rows, for what the inputs hold.

        Raises:
            ReplayError: a graph could not be launched.
        """
        for graph in self.graphs:
            _launch(graph)
        return self.hidden_TD


class PieceProgram:
    """What was captured of one size, with attention between the graphs."""

    def __init__(
        self,
        graphs: list[Replayable],
        looks: list[tuple[Attention, torch.Tensor, torch.Tensor]],
        kv: LayerCaches,
        hidden_TD: torch.Tensor,
    ) -> None:
        """`looks`: behind each graph but the last, which attention, where its queries are and where its outputs go."""
        assert len(graphs) == len(looks) + 1, "a graph before and behind each"
        self.graphs = graphs
        self.looks = looks
        self._kv = kv
        self.hidden_TD = hidden_TD

    def replay(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states of all rows, for what the inputs hold of `batch`.

        Raises:
            ReplayError: a graph could not be launched.
            Exception: whatever attention raises.
        """
        count = batch.num_tokens
        step = _step_of(batch, self._kv)
        _launch(self.graphs[0])
        for (attention, queries_THD, outputs_THD), graph in zip(
            self.looks, self.graphs[1:], strict=True
        ):
            outputs_THD[:count].copy_(attention.look(queries_THD[:count], step))
            _launch(graph)
        return self.hidden_TD


def _step_of(batch: ForwardBatch, kv: LayerCaches) -> Step:
    """For attention alone, whose queries are rotated already."""
    return Step(batch=batch, kv=kv, cos_TK=_NO_ANGLES, sin_TK=_NO_ANGLES)


def _launch(graph: Replayable) -> None:
    try:
        graph.replay()
    except RuntimeError as error:
        raise ReplayError(str(error)) from error


def through_pieces(parts: Parts, bridges: Bridges, batch: ForwardBatch) -> torch.Tensor:
    """What a `PieceProgram` does, without graphs: `parts` of the kept inputs, attention of `batch`."""
    count = batch.num_tokens
    step: Step | None = None
    while True:
        try:
            look = next(parts)
        except StopIteration as end:
            hidden_TD: torch.Tensor = end.value
            return bridges.hidden(hidden_TD)[: len(hidden_TD)].copy_(hidden_TD)
        made_THD = look.queries()
        step = step or _step_of(batch, look.step.kv)
        outputs_THD = bridges.pair(made_THD)[1][: len(made_THD)]
        outputs_THD[:count].copy_(look.attention.look(made_THD[:count], step))
        look.give(outputs_THD)


class Making:
    """A program in the making. What is computed between two calls of `go_on` is not part of it."""

    def __init__(self, device: Device, parts: Parts, size: int, bridges: Bridges | None) -> None:
        """`parts` of a step on the kept inputs; `bridges`: to be captured in pieces, None: whole."""
        self._device = device
        self._parts = parts
        self._size = size
        self._bridges = bridges
        self._graphs: list[Replayable] = []
        self._looks: list[tuple[Attention, torch.Tensor, torch.Tensor]] = []
        self._kv: LayerCaches | None = None
        self._hidden_TD: torch.Tensor | None = None
        self.num_bytes = 0
        """Of the device, so far."""

    def go_on(self, is_late: Callable[[], bool]) -> Program | PieceProgram | None:
        """Capture layers, at least one, until it is late; the program once it is whole.

        Raises:
            Exception: something cannot be captured.
        """
        before = self._device.held()
        bridges = self._bridges

        def some() -> None:
            if bridges is None:
                self._layers(is_late)
            else:
                self._piece(bridges)

        while self._hidden_TD is None:
            self._graphs.append(self._device.capture(some))
            if is_late():
                break
        self.num_bytes += max(0, self._device.held() - before)
        if self._hidden_TD is None:
            return None
        if self._bridges is None:
            return Program(self._graphs, self._hidden_TD)
        assert self._kv is not None, "a layer looked"
        return PieceProgram(self._graphs, self._looks, self._kv, self._hidden_TD)

    def _layers(self, is_late: Callable[[], bool]) -> None:
        while (look := self._next()) is not None:
            look.make()
            if is_late():
                return

    def _piece(self, bridges: Bridges) -> None:
        look = self._next()
        if look is None:
            assert self._hidden_TD is not None, "the parts are over"
            hidden_TD = bridges.hidden(self._hidden_TD)[: self._size]
            self._hidden_TD = hidden_TD.copy_(self._hidden_TD)
            return
        self._kv = look.step.kv
        made_THD = look.queries()
        queries_THD, outputs_THD = (each[: self._size] for each in bridges.pair(made_THD))
        queries_THD.copy_(made_THD)
        look.give(outputs_THD)
        self._looks.append((look.attention, queries_THD, outputs_THD))

    def _next(self) -> Look | None:
        """Up to the next look at other rows; None at the end, when there are hidden states."""
        try:
            return next(self._parts)
        except StopIteration as end:
            self._hidden_TD = end.value
            return None
