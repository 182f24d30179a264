from __future__ import annotations

from pathlib import Path

import pytest

from octavo.kernels.cpu_facts import read_cpu_flags, resolve_dtype

AVX2 = frozenset({"avx2", "f16c", "fma"})
AMX = AVX2 | {"avx512f", "avx512_bf16", "amx_bf16"}


@pytest.mark.parametrize(
    ("asked", "checkpoint", "device", "flags", "expected"),
    [  # without the compiled kernels
        ("auto", "bfloat16", "cpu", AVX2, "float32"),
        ("auto", "float16", "cpu", AVX2, "float32"),
        ("auto", "float32", "cpu", AVX2, "float32"),
        ("auto", "bfloat16", "cpu", AMX, "bfloat16"),
        ("auto", "float16", "cpu", AMX, "float32"),
        ("auto", "bfloat16", "cuda", AVX2, "bfloat16"),
        ("auto", "float32", "cuda", AVX2, "float32"),
        ("bfloat16", "float32", "cpu", AVX2, "bfloat16"),
        ("auto", "bfloat16", "cpu", frozenset({"asimd", "bf16"}), "bfloat16"),
    ],
)
def test_resolve_dtype(
    asked: str, checkpoint: str, device: str, flags: frozenset[str], expected: str
) -> None:
    choice = resolve_dtype(asked, checkpoint, device=device, cpu_flags=flags, has_kernels=False)
    assert choice.dtype == expected
    assert choice.reason


@pytest.mark.parametrize("flags", [AVX2, AMX])
@pytest.mark.parametrize(
    ("asked", "checkpoint", "device", "expected"),
    [
        ("auto", "bfloat16", "cpu", "float32"),
        ("auto", "float16", "cpu", "float32"),
        ("bfloat16", "float32", "cpu", "bfloat16"),
        ("auto", "bfloat16", "cuda", "bfloat16"),
    ],
)
def test_own_kernels_compute_in_float32_whatever_the_cpu_has(
    flags: frozenset[str], asked: str, checkpoint: str, device: str, expected: str
) -> None:
    assert resolve_dtype(asked, checkpoint, device=device, cpu_flags=flags).dtype == expected


@pytest.mark.parametrize(
    ("flags", "device", "is_quantized", "expected"),
    [
        (AMX, "cpu", False, ("float32", "bfloat16")),
        (AVX2, "cpu", False, ("bfloat16", "")),
        (AMX, "cuda", False, ("bfloat16", "")),
        (AMX, "cpu", True, ("float32", "bfloat16")),
        (AVX2, "cpu", True, ("bfloat16", "")),
    ],
)
def test_asked_for_bfloat16_own_kernels_round_products_where_the_cpu_has_units_for_them(
    flags: frozenset[str], device: str, is_quantized: bool, expected: tuple[str, str]
) -> None:
    choice = resolve_dtype(
        "bfloat16", "bfloat16", device=device, cpu_flags=flags, is_quantized=is_quantized
    )
    assert (choice.dtype, choice.products) == expected
    assert choice.kv_dtype == "bfloat16"


def test_auto_takes_such_units_for_a_bfloat16_checkpoint_and_names_what_rounds_nothing() -> None:
    with_units, without = (
        resolve_dtype("auto", "bfloat16", device="cpu", cpu_flags=flags) for flags in (AMX, AVX2)
    )
    assert (with_units.dtype, with_units.products, with_units.kv_dtype) == (
        "float32",
        "bfloat16",
        "bfloat16",
    )
    assert "--dtype float32" in with_units.reason
    assert (without.products, without.kv_dtype) == ("", "float32")
    quantized = resolve_dtype("auto", "bfloat16", device="cpu", cpu_flags=AMX, is_quantized=True)
    assert (quantized.products, quantized.kv_dtype) == ("bfloat16", "bfloat16")
    assert "--dtype float32" in quantized.reason
    asked = resolve_dtype("float32", "bfloat16", device="cpu", cpu_flags=AMX)
    assert (asked.products, asked.kv_dtype) == ("", "float32")
    other = resolve_dtype("auto", "float32", device="cpu", cpu_flags=AMX)
    assert (other.products, other.kv_dtype) == ("", "float32")


@pytest.mark.parametrize("flags", [AMX, AVX2])
def test_of_float16_it_says_what_it_is_kept_in(flags: frozenset[str]) -> None:
    """And names no flag that would be slower: own products of bfloat16 take a bfloat16 checkpoint."""
    reason = resolve_dtype("auto", "float16", device="cpu", cpu_flags=flags).reason
    assert "kept in float32" in reason and "twice the bytes" in reason
    assert "--dtype" not in reason


@pytest.mark.parametrize(
    ("asked", "flags", "device", "is_slow"),
    [
        ("float16", AMX, "cpu", True),
        ("float16", AMX | {"avx512_fp16"}, "cpu", False),
        ("bfloat16", AVX2, "cpu", True),
        ("float32", AVX2, "cpu", False),
        ("float16", AVX2, "cuda", False),
    ],
)
def test_asked_for_a_dtype_without_units_it_says_what_that_costs(
    asked: str, flags: frozenset[str], device: str, is_slow: bool
) -> None:
    reason = resolve_dtype(asked, "float16", device=device, cpu_flags=flags).reason
    assert reason.startswith("asked for")
    assert ("several times as long" in reason) == is_slow


def test_read_cpu_flags(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    assert read_cpu_flags(path) == frozenset()
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: other\n")
    assert read_cpu_flags(path) == {"fpu", "avx2"}
    path.write_text("processor\t: 0\nFeatures\t: fp asimdhp\n")
    assert read_cpu_flags(path) == {"fp", "asimdhp"}
    path.write_text("nothing\n")
    assert read_cpu_flags(path) == frozenset()


def test_keys_and_values_beside_quantized_weights_stay_in_the_checkpoints_type() -> None:
    """Where compiled kernels read them, and nobody asked for a dtype; else they are as everything else."""

    def kept(asked: str, checkpoint: str, **options: bool) -> str:
        options = {"is_quantized": True} | options
        return resolve_dtype(
            asked, checkpoint, device="cpu", cpu_flags=frozenset(), **options
        ).kv_dtype

    assert kept("auto", "bfloat16") == "bfloat16" and kept("auto", "float16") == "float16"
    assert kept("auto", "float32") == "float32" == kept("float32", "bfloat16")
    assert kept("auto", "bfloat16", has_kernels=False) == "float32"
    assert kept("auto", "bfloat16", is_quantized=False) == "float32"
