"""What is to be reached on one H100 of 80 GB, and whether a run has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Parts = dict[str, dict[str, Any]]


class Goal(NamedTuple):
    """One figure."""

    label: str
    part: str
    read: Callable[[Parts], float]
    least: float
    """Or most, where less is better."""
    unit: str = ""
    is_most: bool = False

    def row(self, parts: Parts, *, is_dry: bool) -> tuple[str, str, str, str]:
        """What, the figure, the goal, and whether it is reached; why there is no figure where there is none. Dry runs reach
        nothing.
        """
        wanted = f"{'at most' if self.is_most else 'at least'} {_text(self.least, self.unit)}"
        found = parts.get(self.part)
        if found is None:
            return self.label, "not run", wanted, ""
        if "refused" in found:
            return self.label, str(found["refused"])[:60], wanted, ""
        try:
            value = self.read(parts)
        except (KeyError, TypeError) as error:
            return self.label, f"no figure: {error!r}"[:60], wanted, ""
        reached = value <= self.least if self.is_most else value >= self.least
        return (
            self.label,
            _text(value, self.unit),
            wanted,
            "dry" if is_dry else "yes" if reached else "no",
        )


def _text(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "%" else f"{value:,.6g} {unit}".strip()


def _best(found: dict[str, Any]) -> float:
    return max(each["output_tokens_per_s"] for each in found["runs"].values())


def _beside(parts: Parts) -> float:
    return _best(parts["c"]) / parts["c_vllm"]["output_tokens_per_s"]


GOALS = (
    Goal("(a) 8B, batch 1", "a", lambda p: p["a"]["tokens_per_s"], 180, "tok/s"),
    Goal("(a) of the copy ceiling", "a", lambda p: p["a"]["share_of_copy_ceiling"], 0.85, "%"),
    Goal("(b) 0.6B, public workload", "b", lambda p: _best(p["b"]), 22_000, "tok/s"),
    Goal("(c) 8B beside vLLM in this run", "c", _beside, 1.0, "x"),
    Goal("(d) prompt of 8k, of the matrix ceiling", "d", lambda p: p["d"]["share_of_product_ceiling"], 0.65, "%"),
    Goal("(e) decode attention at 4k, batch 64", "e", lambda p: p["e"]["contexts"]["4096"]["share_of_copy_ceiling"], 0.85, "%"),
    Goal("(f) 8B fp8, batch 1", "f", lambda p: p["f"]["tokens_per_s"], 300, "tok/s"),
    Goal("(g) first token, 0.6B", "g", lambda p: p["g"]["0.6b"]["first_token_s"], 4, "s", is_most=True),
    Goal("(g) first token, 8B", "g", lambda p: p["g"]["8b"]["first_token_s"], 12, "s", is_most=True),
    Goal("device idle, decode at batch 64", "idle", lambda p: p["idle"]["idle_share"], 0.03, "%", is_most=True),
    Goal("mixed steps in pieces, 0.6B, beside eager", "pieces", lambda p: p["pieces"]["speedup"], 1.2, "x"),
    Goal("longest slice of a capture", "pieces", lambda p: p["pieces"]["runs"]["pieces"]["longest_slice_s"], 0.03, "s", is_most=True),
    Goal("memory beyond the plan", "memory", lambda p: p["memory"]["off"], 0.03, "%", is_most=True),
)  # fmt: skip
