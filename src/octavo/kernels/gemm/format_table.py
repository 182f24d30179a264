"""In which numbers linear weights can be kept when they are quantized at load. No torch; `formats.py` quantizes."""

from __future__ import annotations

from typing import NamedTuple

from octavo.core.errors import ConfigError, did_you_mean


class WeightFormat(NamedTuple):
    """One format."""

    bits: int
    group: int = 0
    """Inputs that share a scale; 0: all of an output."""
    tall: int = 1
    """Outputs that share it."""
    has_zeros: bool = False
    """Whether a group has a zero point; without, 0 is level 8 of 16."""
    head: str = ""
    """Format of the head, and of an embedding tied to it; "": this one. Logits suffer most from few bits."""
    rows: str = ""
    """What activations become beside the weights, with one scale per row and `group`: "int8", or "fp8" (e4m3), which weights
    then are, too. Such formats are for GPUs. "": as the kernel says."""

    @property
    def bits_per_weight(self) -> float:
        """Scales and zero points included; those per output are not counted."""
        scale_bits = 32 if self.rows else 16 + 8 * self.has_zeros
        return self.bits + (0 if self.group == 0 else scale_bits / (self.group * self.tall))


FORMATS = {
    "int8": WeightFormat(8),
    "int4": WeightFormat(4, 64, has_zeros=True, head="int8"),
    "int4_g32": WeightFormat(4, 32, head="int8"),
    "int4_g64": WeightFormat(4, 64, head="int8"),
    "int4_g128": WeightFormat(4, 128, head="int8"),
    "int4_g32_zp": WeightFormat(4, 32, has_zeros=True, head="int8"),
    "int4_g64_zp": WeightFormat(4, 64, has_zeros=True, head="int8"),
    "int4_g128_zp": WeightFormat(4, 128, has_zeros=True, head="int8"),
    "int8_w8a8": WeightFormat(8, head="int8", rows="int8"),
    "fp8": WeightFormat(8, head="int8", rows="fp8"),
    "fp8_block": WeightFormat(8, 128, tall=128, head="int8", rows="fp8"),
}
"""By the value of `--quantization`. `_g` is the size of a group, `_zp` says that groups have zero points. `fp8_block` has the
blocks of DeepSeek-V3 (https://arxiv.org/abs/2412.19437, 3.3.2)."""


def quantized_as(asked: str) -> str:
    """The format behind the value of `--quantization`: "" for none.

    Raises:
        ConfigError: there is no such format.
    """
    if asked in ("", "none"):
        return ""
    weight_format(asked)
    return asked


def weight_format(name: str) -> WeightFormat:
    """The format called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        known = ", ".join(("none", *FORMATS))
        raise ConfigError(
            f"unknown quantization {name!r}; known: {known}.{did_you_mean(name, FORMATS)}",
            param="quantization",
            code="E-CFG-08",
        )
    return FORMATS[name]


def check_device(name: str, device: str) -> None:
    """Check that products in format `name` ("": none) exist on a type of device.

    Raises:
        ConfigError: the format is for GPUs, and this is none.
    """
    if name and weight_format(name).rows and device != "cuda":
        raise ConfigError(
            f"--quantization {name} rounds activations as matrix units of GPUs take them and runs on CUDA devices, not on {device}.",
            param="quantization",
            code="E-CFG-08",
            fix="Use --quantization int8, which multiplies in int8 on a CPU, or a GPU.",
        )


def head_format(name: str) -> str:
    """Format of the head of a model whose linear layers have format `name` ("": unquantized)."""
    return (weight_format(name).head or name) if name else ""
