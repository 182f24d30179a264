"""The kernels for GPUs compile to machine code for an A100 and an H100, with no such device here.

The interpreter proves results and takes Python that the compiler refuses; this is the other half. What is asked of the
code: nothing spills, keys and values come by asynchronous copies of 16 bytes, and matrix units of the device multiply.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo.kernels.triton import support

if support.missing() is not None:
    pytest.skip("triton is not installed", allow_module_level=True)

import triton.language as tl

from gpu_compile import compiled
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.attention.triton import SPAN, tilings
from octavo.kernels.triton import (
    attention,
    dense,
    gemm,
    gemm_blocks,
    inputs,
    norm_rounded,
    quantize,
    rows,
    tiles,
)

CASE = AttentionCase(
    device="cuda",
    dtype="bfloat16",
    cache_dtype="bfloat16",
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    scale=1.0,
)
POINTERS = {name: "*bf16" for name in ("q", "k", "v", "k_scales", "v_scales", "out")}
POINTERS |= {name: "*i32" for name in ("tables", "counts", "items")}
POINTERS |= {"partials": "*fp32", "stats": "*fp32"}
NUMBERS = {
    "table_width": "i32",
    "num_partials": "i32",
    "score_scale": "fp32",
    "cap_scale": "fp32",
}
COPY_16 = "0x10"
SHARED_OF_A100 = 163 * 1024
SHARED_OF = {80: SHARED_OF_A100, 89: 99 * 1024, 90: 227 * 1024}
"""By compute capability: of an A100, of an L4 or an RTX 4090, of an H100 (CUDA C++ Programming Guide, table 30)."""


@pytest.mark.parametrize(
    ("which", "capability"),
    [(0, 80), (0, 90), (2, 90)],
    ids=["decodes-80", "decodes-90", "chunks-90"],
)
def test_attention(which: int, capability: int) -> None:
    tiling = tilings(CASE)[which]
    constants = {
        "HEADS": 8,
        "GROUP": 4,
        "DIM": 128,
        "PADDED": 128,
        "M": tiling.rows,
        "N": tiling.keys,
        "SPAN": 0,
        "WINDOW": 0,
        "AHEAD": 0,
        "HAS_CAP": False,
        "HAS_SCALES": False,
        "PRECISION": "tf32",
        "STAGES": tiling.stages,
    }
    made = compiled(
        attention.attend, POINTERS | NUMBERS, constants, capability=capability, warps=tiling.warps
    )
    assert made.stack == 0
    assert made.shared <= SHARED_OF_A100
    copies = [line for line in made.ptx.splitlines() if "cp.async.cg.shared.global" in line]
    assert copies and all(COPY_16 in line for line in copies)
    wide = which == 2 and capability == 90
    assert ("wgmma.mma_async" if wide else "mma.sync") in made.ptx


@pytest.mark.parametrize(
    ("changes", "capability"),
    [
        ({"dtype": "float32"}, 90),
        ({"dtype": "float32", "head_dim": 256}, 80),
        ({"head_dim": 256}, 90),
        ({"head_dim": 256}, 80),
        ({"is_invariant": True}, 80),
    ],
    ids=["float32", "float32-wide", "wide-90", "wide-80", "deterministic"],
)
def test_attention_of_mixed_steps_keeps_its_sums_in_registers(
    changes: dict[str, Any], capability: int
) -> None:
    """Kilobytes of stack per thread would be gigabytes of the device's memory, beside the plan."""
    case = replace(CASE, **changes)
    tiling, is_float = tilings(case)[1], case.dtype == "float32"
    types = POINTERS | NUMBERS
    if is_float:
        types |= {name: "*fp32" for name in ("q", "k", "v", "k_scales", "v_scales", "out")}
    constants = {
        "HEADS": 8,
        "GROUP": 4,
        "DIM": case.head_dim,
        "PADDED": case.head_dim,
        "M": tiling.rows,
        "N": tiling.keys,
        "SPAN": SPAN if case.is_invariant else 0,
        "WINDOW": 0,
        "AHEAD": 0,
        "HAS_CAP": False,
        "HAS_SCALES": False,
        "PRECISION": "ieee" if is_float else "tf32",
        "STAGES": tiling.stages,
    }
    made = compiled(attention.attend, types, constants, capability=capability, warps=tiling.warps)
    assert made.stack <= 32
    assert made.shared <= SHARED_OF_A100


def test_what_is_around_attention() -> None:
    sizes = {"HEADS": 8, "GROUP": 4, "DIM": 128, "PADDED": 128, "M": 4, "UNROLL": 8}
    types = {
        "partials": "*fp32",
        "stats": "*fp32",
        "out": "*bf16",
        "counts": "*i32",
        "merges": "*i32",
        "num_partials": "i32",
    }
    assert compiled(attention.merge, types, sizes, capability=90, warps=4).stack == 0
    names = ("qkv", "q_weight", "k_weight", "q_out")
    types = dict.fromkeys(names, "*bf16") | dict.fromkeys(("cos", "sin"), "*fp32")
    types |= {"slots": "*i64", "qkv_stride": "i32:16", "eps": "fp32"}
    for kept in ("bf16", "i8", "fp8e4nv"):
        scales = f"*{kept}" if kept == "bf16" else "*fp32"
        types |= {"k": f"*{kept}", "v": f"*{kept}", "k_scales": scales, "v_scales": scales}
        sizes = {"HEADS": 32, "KV_HEADS": 8, "DIM": 128, "PADDED": 128, "HALF": 64}
        flags = {"HAS_NORM": True, "LARGEST": {"i8": 127.0, "fp8e4nv": 448.0}.get(kept, 0.0)}
        assert compiled(inputs._prepare, types, sizes | flags, capability=90, warps=1).stack == 0


def test_rows() -> None:
    types = dict.fromkeys(("x", "residual", "weight", "bias", "out"), "*bf16")
    sizes = {"SIZE": 4096, "PADDED": 4096, "HAS_RESIDUAL": True}
    for is_centered in (False, True):
        flags = {"IS_CENTERED": is_centered, "HAS_BIAS": is_centered}
        numbers = {"x_stride": "i32:16", "eps": "fp32"}
        made = compiled(rows._norm, types | numbers, sizes | flags, capability=80, warps=8)
        assert made.stack == 0 and "ld.global.v4" in made.ptx
    for curve in rows.CURVES.values():
        types = {"x": "*bf16", "out": "*bf16", "x_stride": "i32:16"}
        sizes = {"SIZE": 14336, "PART": rows.PART, "CURVE": curve, "IS_GATED": True}
        made = compiled(rows._activate, types, sizes, capability=80, warps=4)
        assert made.stack == 0 and "ld.global.v4" in made.ptx
    types = {"ids": "*i64", "table": "*bf16", "out": "*bf16"}
    sizes = {"SIZE": 4096, "PART": rows.PART}
    assert "ld.global.v4" in compiled(rows._gather, types, sizes, capability=80, warps=4).ptx


@pytest.mark.parametrize(("capability", "is_share"), [(80, True), (90, True), (90, False)])
def test_products_with_plain_weights(capability: int, is_share: bool) -> None:
    types = dict.fromkeys(("x", "weight", "bias"), "*bf16")
    types |= {"out": "*fp32" if is_share else "*bf16"}
    types |= {"num_rows": "i32", "outputs": "i32:16", "inputs": "i32:16"}
    types |= {"inputs_per_share": "i32:16", "num_shares": "i32"}
    sizes = {"BLOCK_N": dense.ROWS, "BLOCK_O": dense.OUTPUTS, "BLOCK_D": dense.INPUTS}
    flags = {"HAS_BIAS": True, "IS_SHARE": is_share, "PRECISION": "tf32", "BAND": dense.BAND}
    made = compiled(dense.linear_dense, types, sizes | flags, capability=capability, warps=4)
    assert made.stack == 0
    assert made.shared <= SHARED_OF_A100
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in made.ptx


def test_a_norm_that_rounds() -> None:
    types = dict.fromkeys(("x", "residual", "weight"), "*bf16") | {"row_scales": "*fp32"}
    types |= {"x_stride": "i32:16", "eps": "fp32"}
    sizes = {"SIZE": 4096, "PADDED": 4096, "HAS_RESIDUAL": True, "TINY": 2.0**-119}
    for kept, largest in (("i8", 127.0), ("fp8e4nv", 448.0)):
        flags = {"LARGEST": largest, "IS_FP8": largest == 448.0}
        made = compiled(
            norm_rounded._norm_rounded,
            types | {"levels": f"*{kept}"},
            sizes | flags,
            capability=90,
            warps=8,
        )
        assert made.stack == 0 and "ld.global.v4" in made.ptx


KINDS = ("w4", "w8", "int8", "fp8", "fp8_block")
RULES = sorted({*tiles._RULES.values(), tiles._INVARIANT._replace(shares=0)})


@pytest.mark.parametrize(
    ("capability", "kind", "tile"),
    [(90, kind, tile) for kind in KINDS for tile in RULES]
    + [(80, kind, tile) for kind in KINDS[:3] for tile in RULES]
    + [(89, kind, tile) for kind in KINDS[3:] for tile in RULES],
)
def test_products_with_quantized_weights(capability: int, kind: str, tile: tiles.Tile) -> None:
    """Every tile that is chosen without a table."""
    types = {"out": "*bf16", "bias": "*bf16", "scales": "*fp32", "row_scales": "*fp32"}
    types |= {"num_rows": "i32", "outputs": "i32:16", "inputs": "i32:16"}
    sizes = {"BLOCK_N": tile.rows, "BLOCK_O": tile.outputs, "BAND": tile.band}
    sizes |= {"HAS_BIAS": True, "IS_SHARE": False}
    x = {"int8": "*i8", "fp8": "*fp8e4nv", "fp8_block": "*fp8e4nv"}.get(kind, "*bf16")
    types |= {"x": x, "levels": {"w4": "*u8", "w8": "*i8"}.get(kind, x)}
    if kind == "w4":
        kernel = gemm.linear_w4
        del types["row_scales"]
        types |= {
            "scales": "*bf16",
            "zeros": "*u8",
            "num_blocks": "i32:16",
            "blocks_per_share": "i32",
        }
        sizes |= {"GROUP": 128, "HALF": 64, "HAS_ZEROS": True, "DOT": tl.bfloat16}
        sizes |= {"SCALES_WEIGHTS": tile.scales_weights}
    elif kind == "fp8_block":
        kernel = gemm_blocks.linear_blocks
        types |= {"num_blocks": "i32:16", "groups_per_share": "i32:16"}
        sizes |= {"TALL": 128, "GROUP": 128}
    else:
        kernel = gemm.linear_w8
        types |= {"inputs_per_share": "i32:16"}
        sizes |= {"SUMS": tl.int32 if kind == "int8" else tl.float32, "DOT": tl.bfloat16}
        sizes |= {"HAS_ROW_SCALES": kind != "w8", "IS_FP8": kind == "fp8", "BLOCK_D": tile.inputs}
    made = compiled(
        kernel, types, sizes, capability=capability, warps=tile.warps, stages=tile.stages
    )
    assert made.stack == 0
    assert made.shared <= SHARED_OF[capability]
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in made.ptx


def test_rows_are_rounded_in_groups() -> None:
    types = {"x": "*bf16", "levels": "*fp8e4nv", "scales": "*fp32", "num_rows": "i32"}
    types |= {"inputs": "i32:16"}
    sizes = {"GROUP": 128, "GROUPS": quantize.GROUPS, "TINY": quantize.TINY}
    made = compiled(quantize.quantize_group, types, sizes, capability=90, warps=4)
    assert made.stack == 0 and "ld.global.v4" in made.ptx
