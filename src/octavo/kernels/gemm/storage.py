"""In which dtype a linear kernel wants a weight, said without loading the kernel. No torch; for plans made before a start.

The kernels of the registry ask the same functions; a test compares what the dispatcher finds with `storage_of`.
"""

from __future__ import annotations

from typing import NamedTuple

from octavo.kernels.cpu import native
from octavo.kernels.dispatch import OpCase


class Stored(NamedTuple):
    """How the kernel that takes a case keeps weights."""

    dtype: str
    """Of what is not quantized."""
    is_repacked: bool
    """Whether the kernel has a layout of its own."""


def packed_dtype(checkpoint: str) -> str:
    """What the packed CPU kernels keep: bfloat16 stays; everything else is kept in float32."""
    return "bfloat16" if checkpoint == "bfloat16" else "float32"


def packed_refusal(case: OpCase) -> str | None:
    """Why the packed CPU kernel does not take a case; None when it does.

    It refuses other devices and dtypes, machines without vector units, and a build without the extension.
    """
    if case.weights:
        return "keeps weights as they are"
    reason = native.refusal(case.device, case.dtype, ("float32",))
    if reason is None and native.isa() == "scalar":
        return "this CPU has no AVX2, and without it torch is faster"
    return reason


def storage_of(case: OpCase, checkpoint: str) -> Stored:
    """What the first kernel that takes `case` keeps of a `checkpoint` in that dtype."""
    on_cpu = case.device == "cpu"
    if on_cpu and (case.weights or packed_refusal(case) is None):
        return Stored(packed_dtype(checkpoint), True)
    return Stored(case.dtype, bool(case.weights))
