"""The kernels for GPUs compile to machine code for an A100 and an H100, with no such device here.

The interpreter proves results and takes Python that the compiler refuses; this is the other half. What is asked of the
code: nothing spills, keys and values come by asynchronous copies of 16 bytes, and matrix units of the device multiply.
"""

from __future__ import annotations

import pytest

from octavo.kernels.triton import support

if support.missing() is not None:
    pytest.skip("triton is not installed", allow_module_level=True)

from gpu_compile import compiled
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.attention.triton import tilings
from octavo.kernels.triton import attention, dense, inputs, norm_rounded, rows

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
