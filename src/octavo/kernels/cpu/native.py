"""What the compiled CPU kernels (`octavo._cpu`) can do on this machine. No torch.

Where the extension was not built, `missing()` says so and the functions that ask it must not be called.
"""

from __future__ import annotations

import platform

try:
    from octavo import _cpu
except ImportError as error:  # a source tree, or a platform, without the compiled part
    _IMPORT_ERROR: str | None = str(error)
else:
    _IMPORT_ERROR = None
    native = _cpu


SCALAR_COST = "attention takes 5 to 10 times as long, and products are left to torch, where bits may depend on the batch"
"""Measured with the scalar kernels on a CPU that has the others (docs/log.md)."""


def missing() -> str | None:
    """Why the compiled kernels cannot be used; None when they can."""
    return None if _IMPORT_ERROR is None else f"the compiled extension is missing ({_IMPORT_ERROR})"


def refusal(device: str, dtype: str, dtypes: tuple[str, ...]) -> str | None:
    """Why a kernel for `dtypes` cannot take a case of this device and dtype; None when it can."""
    if device != "cpu":
        return f"runs on cpu and not on {device}"
    if dtype not in dtypes:
        return f"takes {' or '.join(dtypes)} and not {dtype}"
    return missing()


def isa() -> str:
    """The best instruction set of this machine: scalar, avx2, avx512, or avx512_bf16 where products are rounded."""
    return native.isa()


def limit_isa(name: str) -> None:
    """Use no instruction set above this one from now on, as if the machine had none; tests see the slow path so.

    Raises:
        ValueError: no instruction set has that name.
    """
    native.limit_isa(name)


def round_products(is_on: bool) -> None:
    """Whether products with bfloat16, of weights or of keys and values, round the other side, too, on a CPU with units for that."""
    if is_on:
        native.limit_isa("avx512_bf16")
    elif isa() == "avx512_bf16":
        native.limit_isa("avx512")


def slow_because() -> str:
    """Why the kernels run without vector instructions here, and what that costs."""
    wanted = ("avx2", "fma", "f16c")
    lacking = [name for name, there in features().items() if name in wanted and not there]
    if platform.machine() not in ("x86_64", "AMD64"):
        cause = f"there are no vector kernels for {platform.machine()} yet"
    else:
        cause = f"this CPU has no {', '.join(lacking).upper() or 'AVX2 that may be used'}"
    return f"{cause}: kernels run without vector instructions: {SCALAR_COST}."


def features() -> dict[str, bool]:
    """Instruction set extensions that this machine has."""
    return native.features()


def runnable_isas() -> tuple[str, ...]:
    """Instruction sets with kernels that run here, best first."""
    return tuple(native.runnable_isas())
