"""What named devices have: memory, bytes read and operations per second. Data, each row with its source.

`memory_mib` is what the driver reports, which is less than the name says where error correction or units take some.
Rates are the vendor's peaks, dense (half of what data sheets print with sparsity).
"""

from __future__ import annotations

from typing import NamedTuple

from octavo.core.errors import ConfigError, did_you_mean

MIB = 1 << 20
CONTEXT_BYTES = 1 << 30
"""Of a GPU's memory, what the driver's context, its libraries and their workspaces take before a byte is asked for."""

_NVIDIA = "https://www.nvidia.com/en-us/data-center/"


class Device(NamedTuple):
    """One row."""

    memory_mib: int
    read_gb_s: float
    """10^9 bytes per second of its memory."""
    tflops: float
    """10^12 operations per second of products in bfloat16 (float16 where it has none), sums in float32."""
    tflops_float32: float
    link_gb_s: float
    """10^9 bytes per second that one device sends to its neighbours: half of what is named for both ways."""
    source: str
    capability: tuple[int, int] | None = None
    """Compute capability (https://developer.nvidia.com/cuda-gpus); None: not a GPU's."""


DEVICES: dict[str, Device] = {
    "b200": Device(183_359, 8000, 2250, 75, 900, _NVIDIA + "dgx-b200/", (10, 0)),
    "h200": Device(143_771, 4800, 989, 67, 450, _NVIDIA + "h200/", (9, 0)),
    "h100": Device(81_559, 3350, 989, 67, 450, _NVIDIA + "h100/ (SXM)", (9, 0)),
    "h100-pcie": Device(81_559, 2000, 756, 51, 64, _NVIDIA + "h100/ (PCIe)", (9, 0)),
    "h100-nvl": Device(95_830, 3900, 835, 60, 300, _NVIDIA + "h100/ (NVL)", (9, 0)),
    "a100": Device(81_920, 2039, 312, 19.5, 300, _NVIDIA + "a100/ (80 GB SXM)", (8, 0)),
    "a100-40gb": Device(40_960, 1555, 312, 19.5, 300, _NVIDIA + "a100/ (40 GB SXM)", (8, 0)),
    "l40s": Device(46_068, 864, 362, 91.6, 32, _NVIDIA + "l40s/", (8, 9)),
    "l4": Device(23_034, 300, 121, 30.3, 32, _NVIDIA + "l4/", (8, 9)),
    "a10": Device(23_028, 600, 125, 31.2, 32, _NVIDIA + "products/a10-gpu/", (8, 6)),
    "rtx4090": Device(
        24_564,
        1008,
        165,
        82.6,
        32,
        "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/",
        (8, 9),
    ),
    "rtx3090": Device(
        24_576,
        936,
        71,
        35.6,
        32,
        "https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/",
        (8, 6),
    ),
}
"""By the value of `--device`, beside cpu and auto."""


def device_row(name: str) -> Device:
    """The row called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in DEVICES:
        known = ("auto", "cpu", *DEVICES)
        raise ConfigError(
            f"--device is {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}",
            code="E-PLAN-01",
            fix="For another one name a like one, and give --memory-gib, --read-gb-s and --tflops.",
            param="device",
        )
    return DEVICES[name]
