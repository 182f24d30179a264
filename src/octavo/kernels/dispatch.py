"""Which candidate computes an op: ask in order, collect refusals, remember the winner.

A candidate is told the case (device, dtype, sizes) before any tensor exists and answers with a reason when it cannot
take it. Where several that an op calls rivals take a case, they are timed on it, and the fastest has it. There is no try-and-fall-back at run time: what was chosen runs, and `Dispatcher.choices` says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

from octavo.core.errors import ConfigError, did_you_mean
from octavo.core.registry import Registry

CaseT = TypeVar("CaseT", bound=Hashable)
CaseT_contra = TypeVar("CaseT_contra", contravariant=True)
MadeT = TypeVar("MadeT")
MadeT_co = TypeVar("MadeT_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCase:
    """What is known of a simple op before it runs."""

    device: str
    """Device type: "cpu", "cuda"."""
    dtype: str
    """Of the activations, by torch's name: "float32", "bfloat16"."""
    weights: str = ""
    """Of a linear: the quantized format in which its weight is kept (`gemm/format_table.py`); "" for none."""
    is_invariant: bool = False
    """Whether a row must have the same bits in any batch, at the cost of speed; some kernels have them anyway."""
    sizes: tuple[int, ...] = ()
    """Sizes that never change: (features,) of a norm, (out, in) of a linear, (heads, kv heads, head dim) of rope."""


class Candidate(Protocol[CaseT_contra, MadeT_co]):
    """One way to compute an op. A class with these two is one, as is a `Function`."""

    def refuses(self, case: CaseT_contra, /) -> str | None:
        """Why it cannot take the case, or None."""

    def __call__(self, case: CaseT_contra, /) -> MadeT_co:
        """The callable or object that computes the case."""


@dataclass(frozen=True, slots=True)
class Function(Generic[P, R]):
    """A candidate that is one plain function, for the given devices (all when empty)."""

    run: Callable[P, R]
    devices: tuple[str, ...] = ()
    adds_up: bool = False
    """Whether it sums over a row through a library, which on a GPU may order sums by the number of rows."""

    def refuses(self, case: OpCase, /) -> str | None:
        """Why it cannot take the case, or None."""
        if self.devices and case.device not in self.devices:
            return f"runs on {', '.join(self.devices)} and not on {case.device}"
        if self.adds_up and case.is_invariant and case.device != "cpu":
            return "the library may order sums by the number of rows"
        return None

    def __call__(self, case: OpCase, /) -> Callable[P, R]:
        """The function itself."""
        return self.run


@dataclass(frozen=True, slots=True, eq=False)
class Op(Generic[CaseT, MadeT]):
    """A named op and its candidates, preferred first."""

    name: str
    candidates: Registry[Candidate[CaseT, MadeT]]
    rivals: tuple[str, ...] = ()
    """Candidates of which none is the better by nature."""
    race: str = ""
    """`module:attribute` of what times them, as `Race`; loaded where two or more take a case."""


Race = Callable[[Any, dict[str, Any]], dict[str, float | str]]
"""Of a case and what was made for it, by candidate: seconds, or why one must not be used."""


class Choice(NamedTuple):
    """What was chosen for a case, and why the candidates before it were not."""

    op: str
    case: Hashable
    winner: str
    refusals: tuple[tuple[str, str], ...]


class Dispatcher:
    """Chooses candidates and remembers what it chose. One per model; owned by its `Build`.

    `forced` maps an op's name to the only candidate that may compute it.
    """

    def __init__(self, forced: Mapping[str, str] | None = None) -> None:
        self._forced = dict(forced or {})
        self._made: dict[tuple[str, Hashable], Any] = {}
        self.choices: list[Choice] = []

    def choose(self, op: Op[CaseT, MadeT], case: CaseT) -> MadeT:
        """What computes `case`; equal cases get the same object.

        Raises:
            ConfigError: every candidate refused; the message lists each with its reason.
        """
        key = (op.name, case)
        if key not in self._made:
            self._made[key] = self._ask(op, case)
        made: MadeT = self._made[key]
        return made

    def _ask(self, op: Op[CaseT, MadeT], case: CaseT) -> MadeT:
        refusals: list[tuple[str, str]] = []
        names = self._names(op)
        raced: tuple[str, ...] = ()
        for name in names:
            if name in raced:
                continue
            candidate = op.candidates.load(name)
            reason = candidate.refuses(case)
            if reason is not None:
                refusals.append((name, reason))
                continue
            won: tuple[str, MadeT] | None
            if name in op.rivals and len(names) > 1:
                raced, won = op.rivals, self._race(op, case, refusals)
            else:
                won = name, candidate(case)
            if won is not None:
                self.choices.append(Choice(op.name, case, won[0], tuple(refusals)))
                return won[1]
        report = "; ".join(f"{name}: {reason}" for name, reason in refusals)
        raise ConfigError(
            f"nothing computes {op.name} for {case}. Asked: {report or 'nobody'}.",
            code="E-KERNEL-01",
            fix="Remove the forced choice." if op.name in self._forced else "",
        )

    def _race(
        self, op: Op[CaseT, MadeT], case: CaseT, refusals: list[tuple[str, str]]
    ) -> tuple[str, MadeT] | None:
        """The fastest of those rivals that take the case; why the others do not have it goes to `refusals`."""
        made: dict[str, MadeT] = {}
        asked = {name for name, _ in refusals}
        for name in op.rivals:
            candidate = op.candidates.load(name)
            reason = candidate.refuses(case)
            if reason is None:
                made[name] = candidate(case)
            elif name not in asked:
                refusals.append((name, reason))
        if len(made) == 1:
            return next(iter(made.items()))
        module, _, attribute = op.race.partition(":")
        race: Race = getattr(importlib.import_module(module), attribute)
        found = race(case, dict(made))
        times = {name: took for name, took in found.items() if not isinstance(took, str)}
        refusals += [(name, why) for name, why in found.items() if isinstance(why, str)]
        if not times:
            return None
        best = min(times, key=lambda name: times[name])
        slower = f"is slower here, {{:.0f}} us where {best} takes {times[best] * 1e6:.0f}"
        refusals += [(n, slower.format(took * 1e6)) for n, took in times.items() if n != best]
        return best, made[best]

    def _names(self, op: Op[CaseT, MadeT]) -> tuple[str, ...]:
        forced = self._forced.get(op.name)
        return tuple(op.candidates) if forced is None else (forced,)


def check_forced(forced: Mapping[str, str], ops: tuple[Op[Any, Any], ...]) -> None:
    """Check the names in `forced` before anything is built.

    Raises:
        ConfigError: an op of that name does not exist (candidates are checked when they are loaded).
    """
    known = {op.name for op in ops}
    for name in forced:
        if name not in known:
            raise ConfigError(
                f"no op is called {name!r}; known: {', '.join(sorted(known))}.{did_you_mean(name, known)}",
                code="E-KERNEL-02",
            )
