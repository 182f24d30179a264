"""Which flags are tried. What the operator gave stays as given. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from octavo.core.kvspec import BLOCK_SIZE
from octavo.scheduler.limits import PREFILL_SHARE, Limits
from octavo.tools.tune.slo import Slo

SEQS = (4, 8, 16, 32, 64, 128, 256)
TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192)
ITL_SHARES = (0.4, 0.6, 0.8, 1.0)
"""Of the limit between tokens that was asked for, as --max-itl-ms: less than all of it leaves room for what varies."""


DEFAULTS = "(defaults)"
"""How flags are called where there are none."""


class Candidate(NamedTuple):
    """Values of flags of `octavo serve`."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_itl_ms: float | None
    performance_mode: str
    enable_prefix_caching: bool

    @property
    def is_possible(self) -> bool:
        """Whether a server would start with it."""
        return self.max_num_batched_tokens >= self.max_num_seqs + BLOCK_SIZE

    def with_value(self, name: str, value: object) -> Candidate:
        """The same with another value of one flag, out of a `Space`."""
        return Candidate(**(self._asdict() | {name: value}))

    def limits(self, of: Limits) -> Limits:
        """The limits of a scheduler with these flags."""
        return replace(
            of,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_itl_s=None if self.max_itl_ms is None else self.max_itl_ms / 1e3,
            prefill_share=1.0 if self.performance_mode == "throughput" else PREFILL_SHARE,
        )

    def changes(self, default: Candidate) -> dict[str, object]:
        """Fields, as keys of `--config`, that are not the default's."""
        mine, theirs = self._asdict(), default._asdict()
        return {name: value for name, value in mine.items() if value != theirs[name]}

    def text(self, default: Candidate) -> str:
        """The flags to type; DEFAULTS when there are none."""
        return " ".join(flags(self.changes(default))) or DEFAULTS


def flags(values: Mapping[str, object]) -> list[str]:
    """Keys of `--config` as flags."""
    words = []
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words.append(
                f"--{option} {value:g}" if isinstance(value, float) else f"--{option} {value}"
            )
    return words


Space = dict[str, tuple[object, ...]]


def space(default: Candidate, slo: Slo, fixed: set[str], longest_step: int) -> Space:
    """Values to try of each flag; `longest_step` is the most tokens that a step can be predicted for."""
    between = [
        limits[name] for limits, name in ((slo.p99, "itl"), (slo.each, "tpot")) if name in limits
    ]
    least = min(between, default=math.inf)
    itl = tuple(round(least * share, 2) for share in ITL_SHARES) if between else ()
    tokens = tuple(
        size for size in TOKENS if size <= max(longest_step, default.max_num_batched_tokens)
    )
    values: Space = {
        "max_num_seqs": SEQS,
        "max_num_batched_tokens": tokens,
        "max_itl_ms": (None, *itl),
        "performance_mode": ("balanced", "throughput"),
        "enable_prefix_caching": (True, False),
    }
    return {
        name: tuple(dict.fromkeys((getattr(default, name), *tried)))
        for name, tried in values.items()
        if name not in fixed
    }
