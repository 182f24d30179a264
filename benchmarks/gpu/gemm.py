"""Products with quantized weights on a GPU, beside cuBLAS in bfloat16 and the card's own ceilings.

    python benchmarks/gpu/gemm.py --json benchmarks/results/gpu-gemm.json
    python benchmarks/gpu/gemm.py --tune          (writes src/octavo/kernels/tuned/gemm-<card>.json)
    python benchmarks/gpu/gemm.py --interpret     (no card: shows that it runs)

Shapes are those of Llama-3.1-8B's layers. Each result is first compared with the reference. Times are of CUDA graphs over as
many copies of the weight as the L2 cache cannot hold. `of reading` is the bytes of the packed weight, rows and results over
the time, as a share of the measured ceiling; `of products` is two operations per weight and row, over the measured bf16
ceiling (int8, fp8 and fp8_block can pass 1: their units are twice as fast).
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from card import Card
from results import Results

from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.formats import FORMATS, quantize
from octavo.kernels.gemm.quantized import TorchQuantized
from octavo.kernels.gemm.registry import LINEAR
from octavo.kernels.triton.tiles import ROW_BUCKETS, Tile, tuned_path
from octavo.tools.tables import table

SHAPES = {
    "qkv": (6144, 4096),
    "out": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
}
ROWS = (1, 16, 64, 256, 2048)
KINDS = {
    "int8": "w8",
    "int4_g128": "w4",
    "int8_w8a8": "int8",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
}
"""What is tuned by: a format, and the kind of kernel that it stands for."""
COLD_BYTES = 256 << 20
"""Several times the L2 cache of any card."""


def kernel_for(card: Card, form: str, outputs: int, inputs: int) -> Any:
    """The kernel that takes the case, or why none does."""
    case = OpCase(device=card.device.type, dtype="bfloat16", weights=form, sizes=(outputs, inputs))
    reasons = []
    for name in LINEAR.candidates:
        candidate = LINEAR.candidates.load(name)
        reason = candidate.refuses(case)
        if reason is None and name.startswith("triton"):
            return candidate(case)
        reasons.append(f"{name}: {reason}")
    return "; ".join(reasons)


def copies_of(card: Card, packed: Any) -> list[Any]:
    """The weight so often that one is cold when its turn comes."""
    count = 1 if card.is_dry else max(2, -(-COLD_BYTES // num_bytes(packed)))
    return [packed] + [
        type(packed)(*(x.clone() if isinstance(x, torch.Tensor) else x for x in packed))
        for _ in range(min(count, 64) - 1)
    ]


def num_bytes(packed: Any) -> int:
    """Of a packed weight."""
    return sum(x.nbytes for x in packed if isinstance(x, torch.Tensor))


def check_result(kernel: Any, weight_OD: torch.Tensor, packed: Any, rows: int) -> float:
    """Largest error of a result, relative to the largest value of the reference."""
    x_ND = torch.randn(min(rows, 4), weight_OD.shape[1], device=weight_OD.device).bfloat16()
    levels = quantize(weight_OD[:256], FORMATS[kernel.case.weights])
    wanted = TorchQuantized(kernel.case, rounds_rows=False).run(x_ND, levels, None).double()
    got = kernel.run(x_ND, packed, None)[:, :256].double()
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def measure(
    card: Card, shapes: dict[str, tuple[int, int]], rows: tuple[int, ...], best: dict[str, float]
) -> list[dict[str, Any]]:
    """A line per shape, number of rows and format."""
    lines = []
    for name, (outputs, inputs) in shapes.items():
        weight_OD = torch.randn(outputs, inputs, device=card.device).bfloat16() / inputs**0.5
        plain = [weight_OD.clone() for _ in range(1 if card.is_dry else 8)]
        kernels = {
            form: kernel_for(card, form, outputs, inputs) for form in ("int8", "int4", *KINDS)
        }
        packed = {f: k.pack(weight_OD) for f, k in kernels.items() if not isinstance(k, str)}
        for form, kernel in kernels.items():
            if isinstance(kernel, str):
                lines.append({"shape": name, "format": form, "refused": kernel})
        for count in rows:
            x_ND = torch.randn(count, inputs, device=card.device).bfloat16()
            moved = 2 * count * (inputs + outputs)
            took = {
                "cuBLAS": (card.time([partial(F.linear, x_ND, w) for w in plain]).median_s, 0.0)
            }
            size = {"cuBLAS": weight_OD.nbytes}
            for form, weight in packed.items():
                run, copies = kernels[form].run, copies_of(card, weight)
                error = check_result(kernels[form], weight_OD, weight, count)
                calls = [partial(run, x_ND, w, None) for w in copies]
                took[form], size[form] = (card.time(calls).median_s, error), num_bytes(weight)
            for form, (took_s, error) in took.items():
                lines.append(
                    {
                        "shape": name,
                        "rows": count,
                        "format": form,
                        "us": took_s * 1e6,
                        "of reading": (size[form] + moved) / took_s / best["read_bytes_per_s"],
                        "of products": 2 * count * outputs * inputs / took_s
                        / best["bf16_flop_per_s"],
                        "error": error,
                    }
                )  # fmt: skip
    return lines


def tiles_to_try(card: Card, kind: str, bucket: int) -> list[Tile]:
    """Tiles that may be the best for so many rows."""
    heights = {16: (16,), 32: (16, 32), 64: (32, 64), 128: (64, 128)}.get(bucket, (64, 128, 256))
    found = []
    for height in heights:
        for width, warps in ((32, 4), (64, 4), (128, 4), (128, 8), (256, 8)):
            for shares in (1, 2, 4, 8) if bucket <= 64 else (1,):
                stages = 4 if height * width <= 8192 else 3
                tile = Tile(height, width, shares=shares, warps=warps, stages=stages)
                found.append(tile)
                if kind == "w4" and bucket > 64:
                    found.append(tile._replace(scales_weights=True))
                elif kind not in ("w4", "fp8_block"):
                    found.append(tile._replace(inputs=64))
    return found[:2] if card.is_dry else found


def tune(
    card: Card, shapes: dict[str, tuple[int, int]], buckets: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The fastest tile of each kind, bucket of rows and shape; tiles that do not fit the card are passed over."""
    rows = []
    for form, kind in KINDS.items():
        for outputs, inputs in shapes.values():
            kernel = kernel_for(card, form, outputs, inputs)
            if isinstance(kernel, str):
                continue
            weight_OD = torch.randn(outputs, inputs, device=card.device).bfloat16()
            copies = copies_of(card, kernel.pack(weight_OD))
            for bucket in buckets:
                x_ND = torch.randn(min(bucket, 4096), inputs, device=card.device).bfloat16()
                timed = []
                for tile in tiles_to_try(card, kind, bucket):
                    kernel.force_tile(tile)
                    calls = [partial(kernel.run, x_ND, w, None) for w in copies]
                    try:
                        timed.append((card.time(calls, rounds=8).median_s, tile))
                    except (RuntimeError, ValueError) as error:  # shared memory or registers
                        print(f"{kind} {tile}: {str(error)[:100]}")
                took_s, tile = min(timed, key=lambda each: each[0])
                print(f"{kind} {outputs}x{inputs} <={bucket}: {tile} {took_s * 1e6:.1f} us")
                rows.append(
                    {
                        "kind": kind,
                        "max_rows": bucket,
                        "outputs": outputs,
                        "inputs": inputs,
                        "tile": tile._asdict(),
                        "us": took_s * 1e6,
                    }
                )
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure or tune."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--interpret", action="store_true")
    args = parser.parse_args(argv)
    card = Card(is_dry=args.interpret)
    shapes, rows, buckets = SHAPES, ROWS, ROW_BUCKETS
    if args.interpret:
        shapes, rows, buckets = {"small": (64, 160)}, (3,), (16,)
    if args.tune:
        name = "interpreter" if args.interpret else torch.cuda.get_device_name()
        path = args.json or tuned_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        table_of = {"facts": card.describe(), "tiles": tune(card, shapes, buckets)}
        path.write_text(json.dumps(table_of, indent=1) + "\n")
        return
    best = card.ceilings()
    lines = measure(card, shapes, rows, best)
    Results(args.json, card.describe(), best).put("gemm", {"lines": lines})
    columns = ("shape", "rows", "format", "us", "of reading", "of products", "error")
    shown = [[_cell(line.get(key, "")) for key in columns] for line in lines]
    print(table(columns, shown))


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
