"""Linear layers whose checkpoint packs levels of groups of inputs in words: AWQ, GPTQ and compressed-tensors.

Levels, zero points and scales are taken as they are. Shape letters: O outputs, D inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from octavo.core.errors import ModelError
from octavo.kernels.gemm.formats import Quantized
from octavo.layers.quant.base import Declares
from octavo.layers.quant.claim import Claim
from octavo.layers.quant.shapes import NAMES, Shapes, shapes_of
from octavo.layers.quant.spec import Packing, StoredSpec
from octavo.layers.quant.words import added, filled, unpack


class _Part(NamedTuple):
    """The tensors of one matrix."""

    name: str
    size: int
    words: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    order_D: torch.Tensor | None
    shape: torch.Tensor | None


class _Read(NamedTuple):
    """What a matrix says."""

    levels_OD: torch.Tensor
    zeros_OG: torch.Tensor
    scales_OG: torch.Tensor
    order_D: torch.Tensor | None


class PackedLevels:
    """The format of one checkpoint, and as what its layers are kept."""

    def __init__(self, spec: StoredSpec, form: str) -> None:
        assert spec.packing is not None, "asked by `reads`"
        self.form = form
        self._packing = spec.packing
        self._method = spec.method
        self._claim = Claim(spec)

    @staticmethod
    def reads(spec: StoredSpec, /) -> bool:
        """Reads packed levels."""
        return spec.packing is not None

    def claims(self, names: tuple[str, ...], /) -> bool:
        """As `Claim`."""
        return self._claim(names)

    def stored(
        self, build: Declares, parts: tuple[tuple[str, int], ...], num_inputs: int, /
    ) -> Callable[[], Quantized]:
        """Declare words, scales and zero points; what is returned reads them once they are filled.

        Raises:
            ModelError: sizes that groups or words do not divide.
        """
        declared = [
            _declare(build, self._packing, name, shapes_of(self._packing, name, size, num_inputs))
            for name, size in parts
        ]

        def read() -> Quantized:
            found = [_read(self._packing, part, num_inputs) for part in declared]
            names = ", ".join(part.name for part in declared)
            return _merged(found, self._packing, num_inputs, names)

        return read


def _declare(build: Declares, packing: Packing, name: str, shapes: Shapes) -> _Part:
    names = NAMES[packing.layout]
    words = torch.empty(shapes.words, dtype=torch.int32, device=build.device)
    build.note(f"{name}.{names.words}", words, "words")
    scales = torch.empty(shapes.scales, device=build.device)
    build.note(f"{name}.{names.scales}", scales, "group_scales")
    middle = filled((1 << (packing.bits - 1)) - packing.zeros_less, packing.bits)
    zeros = torch.full(shapes.zeros, middle, dtype=torch.int32, device=build.device)
    if packing.has_zeros or packing.layout != "packed":
        build.note(f"{name}.{names.zeros}", zeros, "words" if packing.has_zeros else "default")
    order_D = shape = None
    if names.order:
        inputs = torch.arange(shapes.num_inputs, device=build.device)
        order_D = inputs // (packing.group or max(1, shapes.num_inputs))
        build.note(f"{name}.{names.order}", order_D, "default")
    if names.shape:
        shape = torch.tensor([shapes.num_outputs, shapes.num_inputs], device=build.device)
        build.note(f"{name}.{names.shape}", shape, "default")
    return _Part(name, shapes.num_outputs, words, zeros, scales, order_D, shape)


def _read(packing: Packing, part: _Part, num_inputs: int) -> _Read:
    """Levels and zero points uint8, scales float32, and the columns' order if it is not their own."""
    bits, size = packing.bits, part.size
    if part.shape is not None and part.shape.tolist() != [size, num_inputs]:
        _refuse(
            f"{part.name}.weight_shape is {part.shape.tolist()}, and the config asks for {[size, num_inputs]}"
        )
    if packing.layout == "packed":
        levels_OD = unpack(part.words, bits, along=1)[:, :num_inputs]
        zeros_OG = unpack(part.zeros, bits, along=0)[:size]
        scales_OG = part.scales
    else:
        is_awq = packing.layout == "awq"
        levels_OD = unpack(part.words, bits, along=int(is_awq), is_awq=is_awq).T
        zeros = added(part.zeros, packing.zeros_less, bits)
        zeros_OG = unpack(zeros, bits, along=1, is_awq=is_awq).T
        scales_OG = part.scales.T
    if not packing.has_zeros and not bool((zeros_OG == 1 << (bits - 1)).all()):
        _refuse(
            f"{part.name} has zero points, and quantization_config says that weights are symmetric"
        )
    order_D = _order(part, packing.group or max(1, num_inputs))
    if order_D is not None:
        levels_OD = levels_OD[:, order_D]
    return _Read(levels_OD, zeros_OG, scales_OG, order_D)


def _order(part: _Part, group: int) -> torch.Tensor | None:
    """The columns, those of a group side by side; None where they are so already."""
    if part.order_D is None or bool((part.order_D == -1).all()):
        return None
    wanted_D = torch.arange(len(part.order_D), device=part.order_D.device) // group
    if torch.equal(part.order_D, wanted_D):
        return None
    order_D = torch.argsort(part.order_D, stable=True)
    if not torch.equal(part.order_D[order_D], wanted_D):
        _refuse(f"{part.name}: g_idx does not give each group {group} inputs")
    return order_D


def _merged(found: list[_Read], packing: Packing, num_inputs: int, names: str) -> Quantized:
    """Matrices below each other, in groups that kernels have where these are whole numbers of them."""
    order_D = found[0].order_D
    for other in found[1:]:
        is_one_none = (order_D is None) != (other.order_D is None)
        if is_one_none or (
            order_D is not None
            and other.order_D is not None
            and not torch.equal(order_D, other.order_D)
        ):
            _refuse(f"{names} are one product, and their g_idx differ")
    levels_OD = torch.cat([each.levels_OD for each in found])
    scales_OG = torch.cat([each.scales_OG for each in found]).float()
    zeros_OG = torch.cat([each.zeros_OG for each in found]).float()
    if packing.bits == 8:
        group = packing.group or max(1, num_inputs)
        if not packing.has_zeros:
            levels_OD, zeros_OG = (levels_OD ^ 128).view(torch.int8), zeros_OG - 128
        return Quantized(levels_OD, scales_OG, zeros_OG, group, order_D)
    group = packing.kept_group
    times = packing.group // group if packing.group else -(-num_inputs // group)
    scales_OG, zeros_OG = (each.repeat_interleave(times, 1) for each in (scales_OG, zeros_OG))
    return Quantized(levels_OD, scales_OG, zeros_OG, group, order_D)


def _refuse(what: str) -> None:
    raise ModelError(
        f"{what}.",
        code="E-MODEL-06",
        fix="Check that the download is complete and that the config belongs to it.",
    )
