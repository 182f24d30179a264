"""What this CPU can do in each dtype, and the dtype rule that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

NATIVE_FLAGS = {
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "float16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
"""Flags of /proc/cpuinfo that mean arithmetic in the dtype: x86 names first, then Arm's."""


class DtypeChoice(NamedTuple):
    """A dtype and why."""

    dtype: str
    reason: str


def read_cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature flags of the first CPU; empty where the file does not exist."""
    if not path.exists():
        return frozenset()
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def resolve_dtype(
    asked: str, checkpoint: str, *, device: str, cpu_flags: frozenset[str]
) -> DtypeChoice:
    """The dtype to compute in. `asked` is a dtype or "auto"; `checkpoint` is the dtype in config.json.

    Measured 2025-11-21, AMD EPYC (family 25 model 1, AVX2, 2 cores), torch 2.13, linear 1024 -> 3072: float32 takes
    0.78 ms at 1 row and 33 ms at 256 rows; bfloat16 7.8 and 162 ms; float16 7.7 and 132 ms.
    """
    if asked != "auto":
        return DtypeChoice(asked, "asked for")
    if device != "cpu" or checkpoint == "float32":
        return DtypeChoice(checkpoint, "the checkpoint's own")
    if cpu_flags & NATIVE_FLAGS[checkpoint]:
        return DtypeChoice(checkpoint, "the checkpoint's own, and this CPU computes in it")
    return DtypeChoice("float32", f"this CPU has no {checkpoint} arithmetic; force with --dtype")
