"""Linear with quantized weights on a GPU, in Triton. Loads no triton until a weight is packed.

Weights are rounded at load to the levels that `formats.py` says, the same as on a CPU. Weight-only kernels multiply rows
as they are, in 16 bits; the 8-bit ones round them, too (`WeightFormat.rows`). Integer sums are exact, so with int8 rows a
row's result is the same bits in any batch; with the others it is where `OpCase.is_invariant` asks for one tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.formats import (
    FORMATS,
    Quantized,
    WeightFormat,
    adopts_int4,
    narrowed,
    quantize,
)
from octavo.kernels.gpu_facts import FP8_CAPABILITY
from octavo.kernels.rounded import Rounded
from octavo.kernels.triton import support
from octavo.kernels.triton.tiles import Shape, Tile, choose_tile

if TYPE_CHECKING:
    from octavo.kernels.triton.gemm import Int4Weight, Weight8

_MAX_INPUTS = 1 << 17
"""Products of int8 levels of so many inputs fit int32: 127 * 127 * 2**17 < 2**31."""
_VALUES_AT_ONCE = 1 << 24
"""Of a weight that is rounded: what that takes beside the weight is some 20 bytes per value."""
_INTERPRETED_UNITS = 2


class TritonLinear:
    """What kernels of quantized weights have in common; one also has `refuses`, `pack`, `run` and perhaps `adopt`."""

    repacks = True

    def __init__(self, case: OpCase) -> None:
        self.case = case
        self._format = FORMATS[case.weights]
        self._dtype: torch.dtype = getattr(torch, case.dtype)
        self._device, self._units = _device_facts(case.device)
        self._tiles: dict[int, Tile] = {}
        self._forced: Tile | None = None

    @staticmethod
    def stores(checkpoint: str, /) -> str:
        """The checkpoint's own: levels are made of what it says."""
        return checkpoint

    def force_tile(self, tile: Tile | None) -> None:
        """Use this tile for any number of rows from now on; None chooses again. For measurements and tests."""
        self._forced = tile

    def _tile(self, kind: str, rows: int) -> Tile:
        """Chosen once per number of rows."""
        tile = self._forced or self._tiles.get(rows)
        if tile is None:
            outputs, inputs = self.case.sizes
            tile = choose_tile(
                Shape(kind, rows, outputs, inputs),
                device=self._device,
                units=self._units,
                is_invariant=self.case.is_invariant,
            )
            self._tiles[rows] = tile
        return tile


class _Adopting8(TritonLinear):
    """Keeps 8-bit levels of a checkpoint as they are."""

    def rows(self, packed: Int4Weight | Weight8, ids_T: torch.Tensor, /) -> torch.Tensor:
        """Rows int64 [T] of the weight, [T, D]."""
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton.gemm import Int4Weight

        if isinstance(packed, Int4Weight):
            return _int4_rows(packed, ids_T).to(self._dtype)
        levels_TD = level_rows(packed.levels_OD, ids_T)
        return (levels_TD * packed.scales_O.index_select(0, ids_T)[:, None]).to(self._dtype)

    def adopts(self, levels: Quantized, /) -> bool:
        """Whether they are levels of this format, with one scale per output."""
        wanted = torch.float8_e4m3fn if self._format.rows == "fp8" else torch.int8
        is_whole = self._format.bits == 8 and levels.scales_OG.shape[1] == 1
        return is_whole and levels.levels_OD.dtype == wanted

    def adopt(self, levels: Quantized, /) -> Int4Weight | Weight8:
        """Levels and scales as they are."""
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton.gemm import Weight8

        return Weight8(levels.levels_OD, levels.scales_OG[:, 0].contiguous())


class TritonWeightOnly(_Adopting8):
    """int4 and int8 weights beside 16-bit rows."""

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses other formats, devices and dtypes, and a process without triton."""
        if case.weights not in FORMATS:
            return "takes weights quantized at load"
        if FORMATS[case.weights].rows:
            return "rounds no activations"
        return support.refusal(case.device, case.dtype, ("bfloat16", "float16"))

    def pack(self, weight_OD: torch.Tensor, /) -> Int4Weight | Weight8:
        """Levels, scales and zero points in the kernel's layout."""
        if self._format.bits == 4:
            parts = in_parts(weight_OD, self._format)
            return _pack_int4(parts, weight_OD, self._format)
        return _pack_8(weight_OD, self._format)

    def adopts(self, levels: Quantized, /) -> bool:
        """Whether they are levels of this format, in its own groups or with one scale per output."""
        if self._format.bits == 4:
            return adopts_int4(levels, self._format)
        return super().adopts(levels)

    def adopt(self, levels: Quantized, /) -> Int4Weight | Weight8:
        """Levels and scales as they are; those of groups in 16 bits where these hold them."""
        if self._format.bits == 8:
            return super().adopt(levels)
        scales_OG = narrowed(levels.scales_OG)
        whole = slice(0, len(levels.levels_OD))
        return _pack_int4([(whole, levels)], levels.levels_OD, self._format, scales_OG.dtype)

    def run(self, x_ND: torch.Tensor, packed: Any, bias_O: torch.Tensor | None, /) -> torch.Tensor:
        """[N, D] -> [N, O]."""
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton import gemm

        if self._format.bits == 4:
            return gemm.multiply_int4(x_ND, packed, bias_O, self._tile("w4", len(x_ND)))
        return gemm.multiply_int8(x_ND, packed, bias_O, self._tile("w8", len(x_ND)))


class Triton8Bit(_Adopting8):
    """int8 by int8 and e4m3 by e4m3: rows are rounded as they come, each with one scale."""

    def __init__(self, case: OpCase) -> None:
        super().__init__(case)
        self.rounds_rows = self._format.rows

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses other formats, devices and dtypes, devices without e4m3 for it, and a process without triton."""
        rows = FORMATS[case.weights].rows if case.weights in FORMATS else ""
        if not rows:
            return "takes weights whose format says that activations are rounded"
        if FORMATS[case.weights].group:
            return "takes one scale per output"
        if case.sizes and case.sizes[1] > _MAX_INPUTS:
            return f"takes at most {_MAX_INPUTS} inputs and not {case.sizes[1]}"
        return support.refusal(
            case.device,
            case.dtype,
            ("bfloat16", "float16"),
            capability=FP8_CAPABILITY if rows == "fp8" else support.MIN_CAPABILITY,
        )

    def pack(self, weight_OD: torch.Tensor, /) -> Weight8:
        """Levels and scales."""
        return _pack_8(weight_OD, self._format)

    def run(
        self, x_ND: torch.Tensor, packed: Weight8, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O]."""
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton import gemm

        tile = self._tile(self._format.rows, len(x_ND))
        return gemm.multiply_levels(x_ND, packed, bias_O, tile)

    def run_rounded(
        self, rounded: Rounded, packed: Weight8, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O]."""
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton import gemm

        tile = self._tile(self._format.rows, len(rounded.levels_ND))
        return gemm.multiply_rounded(rounded, packed, bias_O, tile)


def _device_facts(device: str) -> tuple[str, int]:
    """Name and number of multiprocessors."""
    if device != "cuda":
        return "interpreter", _INTERPRETED_UNITS
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    return facts.name, facts.multi_processor_count


def level_rows(levels_OD: torch.Tensor, ids_T: torch.Tensor) -> torch.Tensor:
    """Rows int64 [T] of 8-bit levels, float32 [T, D]. Torch gathers no e4m3."""
    return levels_OD.view(torch.uint8).index_select(0, ids_T).view(levels_OD.dtype).float()


def in_parts(weight_OD: torch.Tensor, form: WeightFormat) -> Iterator[tuple[slice, Quantized]]:
    """The levels of some outputs after the other, whole blocks of them, so that rounding a large weight takes little memory."""
    size = max(1, _VALUES_AT_ONCE // max(1, weight_OD.shape[1]))
    size = -(-size // form.tall) * form.tall
    for start in range(0, len(weight_OD), size):
        part = slice(start, min(start + size, len(weight_OD)))
        yield part, quantize(weight_OD[part], form)


def _pack_8(weight_OD: torch.Tensor, form: WeightFormat) -> Weight8:
    # lazy: Triton is loaded where it runs
    from octavo.kernels.triton.gemm import Weight8

    dtype = torch.float8_e4m3fn if form.rows == "fp8" else torch.int8
    levels_OD = torch.empty(weight_OD.shape, dtype=dtype, device=weight_OD.device)
    scales_O = torch.empty(len(weight_OD), device=weight_OD.device)
    for part, found in in_parts(weight_OD, form):
        levels_OD[part] = found.levels_OD.to(dtype)
        scales_O[part] = found.scales_OG[:, 0] if found.scales_OG.shape[1] else 0.0
    return Weight8(levels_OD, scales_O)


def _pack_int4(
    parts: Iterable[tuple[slice, Quantized]],
    like_OD: torch.Tensor,
    form: WeightFormat,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> Int4Weight:
    """The levels of some outputs after the other; `like_OD` has their shape and device, `scale_dtype` all scales."""
    # lazy: Triton is loaded where it runs
    from octavo.kernels.triton.gemm import Int4Weight, half_of

    outputs, inputs = like_OD.shape
    half = half_of(form.group)
    blocks = -(-inputs // (2 * half))
    groups = blocks * 2 * half // form.group
    device = like_OD.device
    levels_OB = torch.empty(outputs, blocks * half, dtype=torch.uint8, device=device)
    scales_GO = torch.zeros(groups, outputs, dtype=scale_dtype, device=device)
    zeros_GO = torch.full((groups, outputs), 8, dtype=torch.uint8, device=device)
    for part, found in parts:
        wide_OD = torch.nn.functional.pad(found.levels_OD, (0, blocks * 2 * half - inputs))
        low_OXB, high_OXB = wide_OD.view(len(wide_OD), blocks, 2, half).unbind(2)
        levels_OB[part] = (low_OXB | high_OXB << 4).flatten(1).to(torch.uint8)
        num_groups = found.scales_OG.shape[1]
        scales_GO[:num_groups, part] = found.scales_OG.T.to(scale_dtype)
        zeros_GO[:num_groups, part] = found.zeros_OG.T.to(torch.uint8)
    return Int4Weight(
        levels_OB, scales_GO, zeros_GO if form.has_zeros else None, inputs, form.group
    )


def _int4_rows(packed: Int4Weight, ids_T: torch.Tensor) -> torch.Tensor:
    """float32 [T, D]."""
    bytes_TB = packed.levels_OB.index_select(0, ids_T)
    bytes_TXB = bytes_TB.view(len(ids_T), bytes_TB.shape[1] // packed.half, packed.half)
    levels_TD = torch.stack((bytes_TXB & 15, bytes_TXB >> 4), 2).flatten(1)[:, : packed.num_inputs]
    scales_TG = packed.scales_GO.index_select(1, ids_T).T.float()
    scales_TD = scales_TG.repeat_interleave(packed.group, 1)[:, : packed.num_inputs]
    if packed.zeros_GO is None:
        return (levels_TD.float() - 8.0) * scales_TD
    zeros_TG = packed.zeros_GO.index_select(1, ids_T).T.float()
    zeros_TD = zeros_TG.repeat_interleave(packed.group, 1)[:, : packed.num_inputs]
    return (levels_TD.float() - zeros_TD) * scales_TD
