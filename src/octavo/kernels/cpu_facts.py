"""What this CPU can do in each dtype, and the dtype rule that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

NATIVE_FLAGS = {
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "float16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
"""Flags of /proc/cpuinfo that mean arithmetic in the dtype: x86 names first, then Arm's."""


PAIR_FLAG = "avx512_bf16"
"""Of a CPU for which the compiled kernels have products of bfloat16."""


_QUANTIZED = "what products with quantized weights take on a CPU"


class DtypeChoice(NamedTuple):
    """A dtype and why."""

    dtype: str
    reason: str
    products: str = ""
    """What layers with weights of that type round their inputs to, and attention its queries and weights; empty: they do not."""
    kept: str = ""
    """What keys and values are kept in where that is narrower; empty: as everything else."""

    @property
    def kv_dtype(self) -> str:
        """Of keys and values, where nobody asks for another."""
        return self.products or self.kept or self.dtype


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
    asked: str,
    checkpoint: str,
    *,
    device: str,
    cpu_flags: frozenset[str],
    is_quantized: bool = False,
    has_kernels: bool = True,
) -> DtypeChoice:
    """The dtype to compute in. `asked` is a dtype or "auto"; `checkpoint` is the dtype in config.json.

    Where the compiled kernels run (`has_kernels`), what lies between layers is float32, also on a CPU that computes in
    bfloat16: they keep the weights in the checkpoint's bfloat16, so that a decode reads no more, and promise the same bits
    whatever else is in the batch, which torch's products do not. On a CPU with AVX512_BF16 they round what they multiply
    with bfloat16 weights, and keys and values, in the same order in any batch, unless float32 is asked for; sums stay
    float32. Measured 2026-11-22, two cores of Zen 5, Qwen3-0.6B's shape: 16 prompts of 256 tokens and 64 more of each took
    8.4 s so and 15.2 s in float32 (`benchmarks/peers`).

    Measured 2026-11-21, AMD EPYC (family 25 model 1, AVX2), torch 2.13, F.linear 1024 -> 3072 on one thread, least of
    400 (1 row) and 12 (256 rows) calls in each of three runs, other work on the machine. 1 row: float32 0.60-0.63 ms,
    bfloat16 0.63, float16 0.51-0.52. 256 rows: float32 40-47 ms, bfloat16 381-388, float16 278-314. So a narrow dtype
    gains little at one row, costs six to nine times at many, and is worth asking for only to halve the memory.
    """
    has_pairs = device == "cpu" and has_kernels and PAIR_FLAG in cpu_flags
    if has_pairs and asked in ("auto", "bfloat16") and checkpoint == "bfloat16":
        if is_quantized:
            reason = f"{_QUANTIZED}; attention and plain layers multiply in the checkpoint's own bfloat16, --dtype float32 does not"
            return DtypeChoice("float32", reason, "bfloat16")
        why = "asked for bfloat16" if asked != "auto" else "the checkpoint's own bfloat16"
        exact = "" if asked != "auto" else "; --dtype float32 rounds nothing"
        reason = (
            f"{why}: products are this CPU's own, sums float32, the same bits in any batch{exact}"
        )
        return DtypeChoice("float32", reason, "bfloat16")
    if asked != "auto":
        wanted = NATIVE_FLAGS.get(asked)
        if device == "cpu" and cpu_flags and wanted is not None and not cpu_flags & wanted:
            slow = f"asked for; this CPU has no {asked} arithmetic, so that many rows take several times as long as in float32"
            return DtypeChoice(asked, slow)
        return DtypeChoice(asked, "asked for")
    if device != "cpu" or checkpoint == "float32":
        return DtypeChoice(checkpoint, "the checkpoint's own")
    if is_quantized:
        # Weights of 4 or 8 bits round far more than the checkpoint's own type does. 16 sequences of 270 tokens on
        # Qwen3-0.6B's shape, two cores of Zen 5: a step takes 32 ms with int8 weights, and 45 with float32 keys and values.
        kept = checkpoint if has_kernels else ""
        return DtypeChoice("float32", _QUANTIZED, kept=kept)
    if has_kernels:
        return DtypeChoice("float32", _kept_exactly(checkpoint))
    if cpu_flags & NATIVE_FLAGS[checkpoint]:
        return DtypeChoice(checkpoint, "the checkpoint's own, and this CPU computes in it")
    return DtypeChoice("float32", f"this CPU has no {checkpoint} arithmetic; force with --dtype")


def _kept_exactly(checkpoint: str) -> str:
    """What the compiled kernels make of a narrow checkpoint: bfloat16 is kept as it is, float16 has no products of its own."""
    if checkpoint != "bfloat16":
        return (
            f"{checkpoint} weights are kept in float32, which holds each exactly, in twice the bytes: the same bits in any "
            "batch; --quantization int8 takes a quarter of them"
        )
    return (
        f"sums in float32 over {checkpoint} weights: the same bits in any batch; force with --dtype"
    )
