"""Compile a Triton kernel for a device that is not here, as far as machine code, and read what it uses."""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


class Compiled(NamedTuple):
    """What a kernel takes of a multiprocessor, and which instructions it was made of."""

    registers: int
    stack: int
    """Bytes per thread; spills live there."""
    shared: int
    """Bytes per program."""
    ptx: str


def compiled(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    *,
    capability: int,
    warps: int,
    stages: int = 3,
) -> Compiled:
    """`types` by parameter, in triton's short names ("*bf16", "i32"). Pointers are aligned to 16 bytes; so many
    divide a number whose type ends in ":16", as they do the strides of a model's rows.
    """
    names = kernel.arg_names
    assert set(names) == set(types) | set(constants), set(names) ^ (set(types) | set(constants))
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr").partition(":")[0] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if types.get(name, "").startswith("*") or types.get(name, "").endswith(":16")
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of triton, about its own next version
        made = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps, "num_stages": stages},
        )
    registers, stack = _usage(made.asm["cubin"])
    return Compiled(registers, stack, made.metadata.shared, made.asm["ptx"])


def _usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])
