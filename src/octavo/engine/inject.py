"""Ordered faults inside the engine, for tests: `install` wraps what a healthy engine calls. Nothing of it is there else.

A victim is known by its request. What strikes in a layer or kernel is told before each run which of the step's tokens are a
victim's; steps are not replayed then (`boot.py`), since a replay calls no wrapper.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from octavo.core.errors import ConfigError
from octavo.core.inject import Aim, Injection
from octavo.core.plan import Slice
from octavo.core.request import Request
from octavo.core.result import SliceResult
from octavo.engine.pooling import PoolingRunner
from octavo.engine.runner import Runner
from octavo.kernels.rounded import Rounded
from octavo.layers.attention import Parts, Step

Span = tuple[int, int]
IN_MODEL = ("nan", "kernel", "hang", "exit")


class InjectedError(RuntimeError):
    """A fault that a test ordered."""


class Attention(Protocol):
    """The layer that faults of the model strike in."""

    backend: Any

    def __call__(self, x_TM: torch.Tensor, step: Any) -> torch.Tensor:
        """[T, M] -> [T, M]."""
        ...


def install(runner: Runner | PoolingRunner, ordered: Iterable[Injection]) -> None:
    """Break the runner as ordered.

    Raises:
        ConfigError: what an order breaks is not there.
    """
    for injection in ordered:
        aim = Aim(injection)
        if injection.kind == "slow":
            _Slow(runner, aim)
        elif injection.kind == "swap":
            _Swap(runner, aim)
        elif injection.kind in IN_MODEL:
            _InModel(runner, aim)
        elif injection.kind != "tokenizer":  # which is the front end's
            if not isinstance(runner, Runner):
                raise ConfigError(
                    f"--inject {injection.kind}: a model that pools prompts has none.",
                    code="E-CFG-01",
                )
            _RAISING[injection.kind](runner, aim)


class _Watch:
    """Knows the victims of the run at hand. Calls `strike` before it."""

    def __init__(self, runner: Runner | PoolingRunner, aim: Aim) -> None:
        self.runner = runner
        self.aim = aim
        self.spans: list[Span] = []
        """Of the run's tokens, those of victims."""
        self._run = runner.run
        runner.run = self.run  # type: ignore[method-assign]

    def run(self, slices: Sequence[Slice]) -> Sequence[SliceResult]:
        """What the runner does, with the victims known."""
        self.spans, at = [], 0
        victims: list[Slice] = []
        for piece in slices:
            request = self.runner.rows.requests[piece.row]
            if self.is_victim(request, piece):
                self.spans.append((at, at + piece.count))
                victims.append(piece)
            at += piece.count
        try:
            if victims:
                self.strike(victims)
            return self._run(slices)
        finally:
            self.spans = []

    def is_victim(self, request: Request, piece: Slice) -> bool:
        """Whether the fault may strike this slice."""
        return self.aim.is_victim(request.id, request.token_ids)

    def strike(self, victims: list[Slice]) -> None:
        """What happens before a run with victims."""


class _Slow(_Watch):
    """Steps take longer."""

    def strike(self, victims: list[Slice]) -> None:
        """Wait."""
        if self.aim.strikes():
            time.sleep(self.aim.injection.milliseconds / 1000)


class _Swap(_Watch):
    """The first block of a victim is another's: the one of the next row that has any, else one nobody was given."""

    def strike(self, victims: list[Slice]) -> None:
        """Write into its table."""
        rows = self.runner.rows
        for piece in victims:
            if not self.aim.strikes():
                continue
            for tables_RB in rows.tables_GRB:
                own = tables_RB[piece.row, 0]
                others = tables_RB[[row for row in rows.requests if row != piece.row], 0]
                others = others[(others != own) & (others != 0)]
                tables_RB[piece.row, 0] = others[0] if len(others) else own + 1
            rows.changed()


class _InModel(_Watch):
    """Strikes in the middle layer, or the one before: what it spoils is in the keys of those that follow."""

    def __init__(self, runner: Runner | PoolingRunner, aim: Aim) -> None:
        super().__init__(runner, aim)
        blocks = getattr(runner.model, "blocks", ())
        if not blocks:
            raise ConfigError(
                f"--inject {aim.injection.kind}: this model has no layers.", code="E-CFG-01"
            )
        block = blocks[(len(blocks) - 1) // 2]
        self._attention: Attention = block.attention
        if aim.injection.kind == "nan":
            self._parts = self._attention.parts
            self._attention.parts = self._with_nan
        else:
            self._attention.backend = _Backend(self._attention.backend, self.in_kernel)

    def is_victim(self, request: Request, piece: Slice) -> bool:
        """What ends or hangs the process does so where there is output to go on from, and once in a request's life."""
        if self.aim.injection.kind in ("exit", "hang"):
            is_fresh = piece.start < request.num_prompt or request.resumed
            return not is_fresh and super().is_victim(request, piece)
        return super().is_victim(request, piece)

    def _with_nan(self, x_TM: torch.Tensor | Rounded, step: Step) -> Parts:
        out_TM: torch.Tensor = yield from self._parts(x_TM, step)
        for begin, end in self.spans:
            if self.aim.strikes():
                out_TM[begin:end] = torch.nan
        return out_TM

    def in_kernel(self) -> None:
        """Called in place of the kernel's wrapper, before it."""
        injection = self.aim.injection
        takes_probe = injection.kind == "kernel" and injection.takes_all
        if not (self.spans or takes_probe) or not self.aim.strikes():
            return
        if injection.kind == "exit":
            os.kill(os.getpid(), signal.SIGKILL)
        while injection.kind == "hang":
            time.sleep(0.01)
        raise InjectedError("injected into a kernel's wrapper")


class _Backend:
    """An attention backend with a fault before its kernel."""

    def __init__(self, backend: Any, strike: Callable[[], None]) -> None:
        self._strike = strike
        self._run = backend.run
        self.plan = backend.plan
        self.case = backend.case

    def run(self, *args: Any) -> torch.Tensor:
        """What the backend does, unless the fault strikes."""
        self._strike()
        out_THD: torch.Tensor = self._run(*args)
        return out_THD


def _in_start(runner: Runner, aim: Aim) -> None:
    add = runner.state.add

    def adding(row: int, request: Request, token_ids: Any) -> None:
        if aim.is_victim(request.id, request.token_ids) and aim.strikes():
            raise InjectedError("injected into the start of a request")
        add(row, request, token_ids)

    runner.state.add = adding  # type: ignore[method-assign]


def _in_sampler(runner: Runner, aim: Aim) -> None:
    sample = runner.sampler.sample

    def sampling(logits_NV: torch.Tensor, rows: Any, state: Any, positions: Any) -> Any:
        for row in np.asarray(rows).tolist():
            request = runner.rows.requests[row]
            if aim.is_victim(request.id, request.token_ids) and aim.strikes():
                raise InjectedError("injected into the sampler")
        return sample(logits_NV, rows, state, positions)

    runner.sampler.sample = sampling  # type: ignore[method-assign]


def _in_grammar(runner: Runner, aim: Aim) -> None:
    grammars = runner.state.grammars
    compute = grammars._compute

    def computing(work: list[Any], *, in_turn: bool) -> None:
        requests = [row.request for row in work]
        if any(aim.is_victim(one.id, one.token_ids) for one in requests) and aim.strikes():
            raise InjectedError("injected into a grammar")
        compute(work, in_turn=in_turn)

    grammars._compute = computing  # type: ignore[method-assign]


_RAISING: dict[str, Callable[[Runner, Aim], None]] = {
    "start": _in_start,
    "sampler": _in_sampler,
    "grammar": _in_grammar,
}
