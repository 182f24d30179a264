"""How fast the compiled kernels are on this machine, for the shapes of a model: what a plan is made with. No torch.

Weights are packed as they would be for serving, so many of them that caches do not hold them (or all, of a model that
is smaller), and multiplied as in a step. Contents do not matter to the time; they are all ones. The shortest of some
passes would be a ceiling; a plan wants what steps will take, so the median counts. Shape letters: N rows, D in, O out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.cpu.native import native
from octavo.kernels.gemm.format_table import FORMATS

ROWS = (1, 2, 4, 8, 16, 64, 256)
"""Numbers of rows at which products are timed; between them lines are drawn, and beyond the last its slope goes on."""
CACHES = 4
"""Packed weights take so many times the last-level cache, so that little of them is still there."""
MAX_BYTES = 1 << 29
MANY_ROWS_BYTES = 1 << 24
SECONDS = 0.1
"""For which each thing is repeated, at least `LEAST` times."""
LEAST = 3
SEQS = 4
LONG = 1024
"""Tokens of context at which attention is timed."""
PROMPT = 256
CODES = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3}


class Product(NamedTuple):
    """Products of one step that have one shape."""

    outputs: int
    inputs: int
    times: int
    """How many there are in the model."""
    form: str
    """Format of `format_table.py`, or the dtype in which it is kept."""


class Timing(NamedTuple):
    """Measured seconds."""

    products: tuple[tuple[int, float], ...]
    """(rows, seconds of all products of the layers)."""
    head: tuple[tuple[int, float], ...]
    """(rows, seconds of the product with the head)."""
    kv_byte_s: float
    """Seconds per byte of keys and values that one decoding row reads."""
    kv_shared_byte_s: float
    """The same of `SEQS` rows at once, which threads share better."""
    pair_s: float
    """Seconds per pair of a query's token and a key's, over all heads of one layer, in a prompt."""
    read_bytes_per_s: float
    """Of packed weights, at one row."""
    flop_per_s: float
    """Of products at the most rows."""
    host_s: float
    """Seconds of `host_loop`, the median of some: how fast this core runs Python at present."""


def measure(
    layer: Sequence[Product], head: Product, spec: KVSpec | None, num_heads: int, threads: int
) -> Timing:
    """Time the products of a model, and attention over a cache of `spec`, on `threads` threads.

    `layer` has the products of one layer, each with `count` layers. Takes some seconds.
    """
    native.set_watch(50)  # as `take_over` does for serving
    num_layers = max((p.times for p in layer), default=0)
    host = host_loops()
    products = _curve(layer, num_layers, threads) if layer else ((1, 0.0),)
    host += host_loops()
    heads = _curve([head], 1, threads)
    host += host_loops()
    attention = (0.0, 0.0, 0.0) if spec is None else _attention(spec, num_heads, threads)
    host += host_loops()
    size = sum(p.times * p.outputs * p.inputs for p in layer)
    rows, seconds = products[-1]
    return Timing(
        products,
        heads,
        *attention,
        sum(p.times * bytes_of(p) for p in layer) / products[0][1] if layer else 0.0,
        2.0 * rows * size / seconds if layer else 0.0,
        statistics.median(host),
    )


def host_loops(count: int = 20) -> list[float]:
    """Seconds of each of `count` runs of a loop as the engine's are: look up, build, store.

    What a step costs around its kernels is Python; on a shared machine its speed changes by a factor of two within
    seconds, and from machine to machine.
    """
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        kept: dict[int, tuple[int, int]] = {}
        total = 0
        for index in range(2000):
            kept[index & 63] = (index, total)
            total += kept[index & 63][0] & 7
        times.append(time.perf_counter() - begun)
    return times


def bytes_of(product: Product) -> float:
    """Bytes that one product reads of its weight."""
    widths = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0}
    bits = widths.get(product.form) or FORMATS[product.form].bits_per_weight
    return product.outputs * product.inputs * bits / 8


def _curve(products: Sequence[Product], count: int, threads: int) -> tuple[tuple[int, float], ...]:
    """Seconds of `count` times these products, by rows."""
    points = []
    # Few rows: reading is the limit, so caches must not help. Many: arithmetic is, and a few weights tell as much as all.
    wanted = min(MAX_BYTES, CACHES * last_level_cache())
    for limit, all_rows in ((wanted, ROWS[:3]), (MANY_ROWS_BYTES, ROWS[3:])):
        once = sum(bytes_of(p) for p in products)
        made = max(1, min(count, round(limit / once)))
        share = min(1.0, limit / once)
        packed = [_Packed(p, share, threads) for _ in range(made) for p in products]
        for rows in all_rows:
            calls = [each.prepare(rows, threads) for each in packed]
            seconds = _median(calls)
            points.append((rows, seconds * count / made / share))
    return tuple(points)


class _Packed:
    """One weight as the kernels keep it; of a very large one, a part."""

    def __init__(self, product: Product, share: float, threads: int) -> None:
        outputs = max(16, int(product.outputs * share) // 16 * 16) if share < 1 else product.outputs
        # A float32 weight whose values are all bfloat16 would be kept as bfloat16.
        value = 0.1 if product.form == "float32" else 1.0
        weight_OD = np.full((outputs, product.inputs), value, np.float32)
        self.shape = weight_OD.shape
        self._call: Callable[..., None]
        self._weight: Any
        if product.form in FORMATS:
            form = FORMATS[product.form]
            self._call = native.quant_linear
            self._weight = native.QuantWeight(
                weight_OD,
                bits=form.bits,
                group=form.group,
                has_zeros=form.has_zeros,
                num_threads=threads,
            )
        else:
            self._call = native.linear
            self._weight = native.PackedWeight(weight_OD, num_threads=threads)

    def prepare(self, rows: int, threads: int) -> Callable[[], None]:
        """The product with `rows` rows, to be called again and again."""
        x_ND = np.full((rows, self.shape[1]), 0.5, np.float32)
        out_NO = np.empty((rows, self.shape[0]), np.float32)

        def call() -> None:
            self._call(self._weight, x_ND.ctypes.data, 0, out_NO.ctypes.data, rows, threads, "")

        return call


def _attention(spec: KVSpec, num_heads: int, threads: int) -> tuple[float, float, float]:
    """Seconds per byte of one row's keys and values, and of some rows', and per pair of tokens in a prompt; of one layer."""
    context = min(LONG, spec.window or LONG)
    per_byte = []
    for seqs in (1, SEQS):
        seconds = _attend(spec, num_heads, 1, context, threads, seqs)
        seconds -= _attend(spec, num_heads, 1, 1, threads, seqs)
        per_byte.append(max(0.0, seconds) / (seqs * (context - 1) * spec.bytes_per_token))
    prompt = _attend(spec, num_heads, PROMPT, PROMPT, threads)
    pairs = PROMPT * (PROMPT + 1) / 2
    return per_byte[0], per_byte[1], prompt / pairs


def _attend(
    spec: KVSpec, num_heads: int, count: int, context: int, threads: int, seqs: int = 1
) -> float:
    """Seconds of attention of `seqs` sequences' `count` tokens at the end of `context`, over caches not in the processor's."""
    per_seq = -(-context // BLOCK_SIZE)
    blocks = seqs * per_seq
    shape = (blocks, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
    width = {"float32": np.float32, "int8": np.int8}.get(spec.dtype, np.uint16)
    one = (
        0x3C00 if width is np.uint16 else 1
    )  # no subnormal number, which would be slow, in either 16-bit type
    per_cache = blocks * BLOCK_SIZE * spec.bytes_per_token
    caches = max(1, min(64, CACHES * last_level_cache() // per_cache)) if count == 1 else 1
    pools = [
        (np.zeros(shape, width), np.zeros(shape, width), np.ones((2, *shape[:3]), np.float32))
        for _ in range(caches)
    ]
    for keys, values, _ in pools:
        keys.fill(one)
        values.fill(one)
    q_THD = np.full((seqs * count, num_heads, spec.head_dim), 0.01, np.float32)
    out_THD = np.empty_like(q_THD)
    tables = np.arange(blocks, dtype=np.int32).reshape(seqs, per_seq)
    starts = [count * at for at in range(seqs + 1)]
    plan = native.AttentionPlan(starts, [context] * seqs, tables)
    has_scales = spec.dtype == "int8"

    def attend() -> None:
        for keys, values, scales in pools:
            native.paged_attention(
                plan,
                q_THD.ctypes.data,
                keys.ctypes.data,
                values.ctypes.data,
                scales[0].ctypes.data if has_scales else 0,
                scales[1].ctypes.data if has_scales else 0,
                out_THD.ctypes.data,
                seqs * count,
                blocks,
                num_heads,
                spec.num_kv_heads,
                spec.head_dim,
                CODES["float32"],
                CODES[spec.dtype],
                spec.head_dim**-0.5,
                spec.window or 0,
                0,
                0.0,
                threads,
                "",
            )

    return _median([attend]) / caches


def _median(calls: Sequence[Callable[[], None]]) -> float:
    """Seconds of all calls, one after the other: the median of some turns."""

    def work() -> None:
        for call in calls:
            call()

    work()
    until = time.perf_counter() + SECONDS
    times: list[float] = []
    while time.perf_counter() < until or len(times) < LEAST:
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def last_level_cache(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the largest cache of the first core; 32 MiB where Linux does not say."""
    sizes = []
    for path in root.glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:])
        if unit and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes, default=32 << 20)
