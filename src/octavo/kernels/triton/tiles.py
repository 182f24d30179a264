"""Which tile a product with quantized weights is cut into on a GPU: measured tables first, else rules of thumb.

A table is a JSON file of `kernels/tuned`, named by the device: `benchmarks/gpu/gemm.py --tune` writes one. Without it a
tile follows from the number of rows. Loads no triton. Shape letters: N rows, D inputs, O outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from octavo.core.errors import ConfigError

TUNED = Path(__file__).resolve().parents[1] / "tuned"
ROW_BUCKETS = (16, 32, 64, 128, 512, 1 << 30)
"""A tile is chosen for at most so many rows: steps of decodes at several batch sizes, small and large chunks."""
MAX_SHARES = 16
_MIN_SHARE = 512
"""Inputs that are worth a program of their own."""
_PROGRAMS_PER_UNIT = 4
"""Programs that one multiprocessor should have, where few rows leave few."""


class Tile(NamedTuple):
    """How one product is cut."""

    rows: int
    """Rows of a program; a power of two from 16."""
    outputs: int
    """Outputs of a program; a power of two from 16."""
    inputs: int = 128
    """Inputs of one turn, for 8-bit weights with one scale per output. Others come in blocks of their own."""
    shares: int = 0
    """Programs that share the inputs of a tile; 0: as many as fill the device."""
    warps: int = 4
    stages: int = 4
    scales_weights: bool = False
    """int4: whether weights are scaled before the product, not sums after it: cheaper for many rows, and rounds once more."""
    band: int = 8
    """Blocks of rows that run together."""


class Shape(NamedTuple):
    """A product."""

    kind: str
    """"w4", "w8" (16-bit rows), "int8", "fp8" or "fp8_block" (rows alike)."""
    rows: int
    outputs: int
    inputs: int


_RULES: Mapping[int, Tile] = {
    16: Tile(16, 64),
    32: Tile(32, 64),
    64: Tile(64, 64),
    128: Tile(64, 128, stages=3, warps=8),
    512: Tile(128, 128, inputs=64, stages=3, warps=8, scales_weights=True),
    ROW_BUCKETS[-1]: Tile(128, 128, inputs=64, stages=3, warps=8, scales_weights=True),
}
"""Not measured: by what a tile keeps in registers and shared memory, and by how many programs there are."""


_INVARIANT = Tile(64, 64, shares=1)
"""Of any number of rows: decodes of up to 64 read a weight once, and a layer of 4,096 outputs has 64 programs."""


def row_bucket(rows: int) -> int:
    """The bucket that so many rows fall in."""
    return next(bound for bound in ROW_BUCKETS if rows <= bound)


def choose_tile(shape: Shape, *, device: str, units: int, is_invariant: bool = False) -> Tile:
    """The tile of a product on `device` (its name) with `units` multiprocessors, its shares settled.

    `is_invariant`: the same for any number of rows, so that a row has the same bits in any batch. Then one program makes all
    of a sum, because shares of many rows would not fit in memory, and of few rows must be summed alike; integer sums are
    exact in any tile.
    """
    if is_invariant and shape.kind != "int8":
        return _INVARIANT
    bucket = row_bucket(shape.rows)
    tile = load_tuned(device).get((shape.kind, bucket, shape.outputs, shape.inputs), _RULES[bucket])
    if tile.shares:
        return tile
    # The number of rows counts by its bucket alone, so that equal buckets give equal bits.
    blocks = -(-shape.outputs // tile.outputs) * -(-min(bucket, 128) // tile.rows)
    wanted = -(-_PROGRAMS_PER_UNIT * units // blocks) if bucket <= 128 else 1
    shares = max(1, min(wanted, MAX_SHARES, shape.inputs // _MIN_SHARE))
    return tile._replace(shares=shares)


def tuned_path(device: str) -> Path:
    """Where the table of a device lies: its name in small letters and digits."""
    return TUNED / f"gemm-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


@lru_cache(maxsize=8)
def load_tuned(device: str) -> dict[tuple[str, int, int, int], Tile]:
    """Measured tiles of a device by (kind, row bucket, outputs, inputs); none where nothing was measured.

    Raises:
        ConfigError: the table is not one.
    """
    path = tuned_path(device)
    if not path.exists():
        return {}
    return read_tuned(path.read_text(), str(path))


def read_tuned(text: str, name: str) -> dict[tuple[str, int, int, int], Tile]:
    """The table in `text`.

    Raises:
        ConfigError: it is malformed; `name` says where it is from.
    """
    found = {}
    try:
        for row in json.loads(text)["tiles"]:
            tile = Tile(**row["tile"])
            _check(tile)
            found[row["kind"], row["max_rows"], row["outputs"], row["inputs"]] = tile
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}: not a table of tiles ({error!r}); expected what benchmarks/gpu/gemm.py --tune writes.",
            fix="Delete the file, or measure again.",
        ) from error
    return found


def _check(tile: Tile) -> None:
    for value in (tile.rows, tile.outputs, tile.inputs, tile.warps):
        if not isinstance(value, int) or value < 1 or value & (value - 1):
            raise ValueError(f"{value!r} is no power of two")
    if min(tile.rows, tile.outputs) < 16 or tile.inputs < 32 or not 0 <= tile.shares <= MAX_SHARES:
        raise ValueError(f"out of range: {tile}")
