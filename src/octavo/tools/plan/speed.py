"""How long a step takes: by a roofline of a device's peaks, or by what the kernels were measured to do on this machine.

A step multiplies all weights once, whatever its rows: reading them is the limit at few rows, arithmetic at many. Beside
that, each decoding row reads its context's keys and values, and each token of a prompt is multiplied with those before
it. What is neither (norms, sampling, the loop) is a sum per step, per layer and per row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from octavo.core.kvspec import DTYPE_BYTES, KVSpec
from octavo.kernels import ceilings
from octavo.kernels.ceilings import Product, Timing
from octavo.kernels.gemm.format_table import head_format
from octavo.models.facts import ModelFacts
from octavo.tools.plan.devices import Device


class Overhead(NamedTuple):
    """Seconds of a step that are not products or attention."""

    step_s: float
    layer_s: float
    row_s: float
    """Per token in the step: what the loop does for it, and sampling."""
    value_s: float
    """Per token, layer and value of its hidden state and inner values: norms, rotations, activations."""


class Shares(NamedTuple):
    """What steps reach of a device's peaks."""

    read: float
    products: float


GPU_SHARES = Shares(read=0.75, products=0.55)
"""Assumed, not measured with this build: what good kernels are known to reach in steps of a served model."""
GPU_OVERHEAD = Overhead(step_s=1.0e-3, layer_s=0.08e-3, row_s=3e-6, value_s=0.0)
"""Assumed: a loop in Python, and some ten kernel launches per layer of 8 us."""
CPU_SHARES = Shares(read=0.53, products=0.61)
"""Medians of benchmarks/roofline.py on 2 cores of Zen 3 (AVX2), unquantized (benchmarks/README.md); Zen 5 reaches 0.85 and 0.75."""
CPU_OVERHEAD = Overhead(step_s=0.14e-3, layer_s=0.009e-3, row_s=8e-6, value_s=0.5e-9)
"""Fitted to steps of octavo-mini in benchmarks/plan.py on quiet cores (2 cores of Zen 5). Two of Zen 3, whose caches are smaller, took
0.3 ms a step more (1.0 ms) at a pace of 0.25 ms; of a model of useful size that is a hundredth."""
CPU_IN_STEP = 1.1
"""Products of a few rows, in a step: other things come between, so each begins to read anew. Median of benchmarks/plan.py with
Qwen3-0.6B's shape on two cores of Zen 5: 1.11 to 1.18, bfloat16 and int8, one row and four."""
CPU_FEW_ROWS = 8
CPU_HOST_S = 0.25e-3
"""`ceilings.host_loops` on the cores to which `CPU_OVERHEAD` was fitted."""
ALL_REDUCE_S = 15e-6
"""Of one sum over devices, beside sending it: assumed."""


class Speed(Protocol):
    """Seconds of the parts of a step."""

    def layers_s(self, rows: int) -> float:
        """All products of the layers."""

    def head_s(self, rows: int) -> float:
        """The product with the head."""

    def keys_s(self, num_bytes: float, rows: int) -> float:
        """Reading keys and values of so many decoding rows."""

    def pairs_s(self, pairs: float) -> float:
        """Attention of a prompt's tokens: pairs of tokens, summed over layers."""

    def rest_s(self, rows: int) -> float:
        """Everything else."""


@dataclass(frozen=True, slots=True)
class Network:
    """What of a model the time of a step depends on; of one rank."""

    facts: ModelFacts
    dtype: str
    weight_dtype: str
    quantization: str
    """Of layers, rounded at load or stored so."""
    kv: tuple[KVSpec, ...]
    is_head_plain: bool = False
    """Whether the head is not rounded with them."""

    def layer(self) -> tuple[Product, ...]:
        """Products of a layer."""
        facts, form = self.facts, self.quantization or self.weight_dtype
        size, inner, count = facts.hidden_size, facts.intermediate_size, facts.num_layers
        queries, keys = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
        # The first of the MLP is as wide as the parameters say: gated or not.
        rest = facts.num_linear_parameters // count - size * (2 * queries + 2 * keys) - size * inner
        shapes = ((queries + 2 * keys, size), (size, queries), (rest // size, size), (size, inner))
        return tuple(Product(outputs, inputs, count, form) for outputs, inputs in shapes)

    def head(self) -> Product:
        """The head."""
        rounded = "" if self.is_head_plain else head_format(self.quantization)
        form = rounded or self.weight_dtype
        return Product(self.facts.vocab_size, self.facts.hidden_size, 1, form)

    def kv_bytes(self, context: float) -> float:
        """Bytes of keys and values that a token at the end of `context` reads."""
        return sum(spec.bytes_per_token * min(context, spec.window or context) for spec in self.kv)

    def pairs(self, start: int, count: int) -> float:
        """Pairs of tokens in the attention of `count` tokens after `start`, summed over layers."""
        total = 0.0
        for window in self.facts.windows:
            if self.facts.sees_whole_prompts:
                total += count * min(start + count, 2 * (window or start + count))
                continue
            seen = window or start + count
            growing = max(0, min(count, seen - start))
            total += growing * (start + (growing + 1) / 2) + (count - growing) * seen
        return total


@dataclass(frozen=True, slots=True)
class Roofline:
    """By peaks, and the share of them that steps reach."""

    network: Network
    device: Device
    shares: Shares
    overhead: Overhead
    num_ranks: int = 1

    @property
    def read(self) -> float:
        """Bytes per second."""
        return self.device.read_gb_s * 1e9 * self.shares.read

    @property
    def flops(self) -> float:
        """Operations per second."""
        is_narrow = self.network.dtype != "float32"
        peak = self.device.tflops if is_narrow else self.device.tflops_float32
        return peak * 1e12 * self.shares.products

    def layers_s(self, rows: int) -> float:
        """The products, and the sums over devices after attention and MLP."""
        products = self.network.layer()
        return sum(self._product_s(p, rows) for p in products) + self._sums_s(rows)

    def head_s(self, rows: int) -> float:
        """The head."""
        return self._product_s(self.network.head(), rows) if rows else 0.0

    def keys_s(self, num_bytes: float, rows: int) -> float:
        """At the rate of reading."""
        return num_bytes / self.read

    def pairs_s(self, pairs: float) -> float:
        """Two products of the head's size per pair and head."""
        facts = self.network.facts
        return 4.0 * pairs * facts.num_heads * facts.head_dim / self.flops

    def rest_s(self, rows: int) -> float:
        """As assumed."""
        return _rest_s(self.overhead, self.network.facts, rows)

    def _product_s(self, product: Product, rows: int) -> float:
        reading = ceilings.bytes_of(product) / self.read
        multiplying = 2.0 * rows * product.outputs * product.inputs / self.flops
        return product.times * max(reading, multiplying)

    def _sums_s(self, rows: int) -> float:
        if self.num_ranks == 1:
            return 0.0
        facts = self.network.facts
        num_bytes = rows * facts.hidden_size * DTYPE_BYTES[self.network.dtype]
        sent = 2 * (self.num_ranks - 1) / self.num_ranks * num_bytes
        return 2 * facts.num_layers * (ALL_REDUCE_S + sent / (self.device.link_gb_s * 1e9))


@dataclass(frozen=True, slots=True)
class Measured:
    """By what the kernels took on this machine just now."""

    network: Network
    timing: Timing
    overhead: Overhead

    def layers_s(self, rows: int) -> float:
        """Between the measured points."""
        return between(self.timing.products, rows) * _in_step(rows)

    def head_s(self, rows: int) -> float:
        """Between the measured points."""
        return between(self.timing.head, rows) * _in_step(rows) if rows else 0.0

    def keys_s(self, num_bytes: float, rows: int) -> float:
        """Between the measured rates."""
        timing = self.timing
        rates = ((1, timing.kv_byte_s), (ceilings.SEQS, timing.kv_shared_byte_s))
        return num_bytes * between(rates, min(rows, ceilings.SEQS))

    def pairs_s(self, pairs: float) -> float:
        """At the measured rate."""
        return pairs * self.timing.pair_s

    def rest_s(self, rows: int) -> float:
        """As fitted, at the speed that Python has here."""
        pace = self.timing.host_s / CPU_HOST_S
        return pace * _rest_s(self.overhead, self.network.facts, rows)


def _in_step(rows: int) -> float:
    return CPU_IN_STEP if rows <= CPU_FEW_ROWS else 1.0


def _rest_s(overhead: Overhead, facts: ModelFacts, rows: int) -> float:
    values = rows * facts.num_layers * (4 * facts.hidden_size + 3 * facts.intermediate_size)
    per_step = overhead.step_s + facts.num_layers * overhead.layer_s
    return per_step + rows * overhead.row_s + values * overhead.value_s


def between(points: tuple[tuple[int, float], ...], rows: int) -> float:
    """The line through measured (rows, seconds); beyond the last point it goes on as from zero."""
    last_rows, last_s = points[-1]
    if rows >= last_rows:
        return last_s * rows / last_rows
    for (low, low_s), (high, high_s) in zip(points, points[1:], strict=False):
        if rows <= high:
            return low_s + (high_s - low_s) * (rows - low) / (high - low)
    raise AssertionError("unreachable: the last point was tested")


def decode_s(speed: Speed, network: Network, num_seqs: int, context: float) -> float:
    """Seconds of a step in which each of `num_seqs` sequences has one token after `context`."""
    keys = speed.keys_s(num_seqs * network.kv_bytes(context), num_seqs)
    return speed.layers_s(num_seqs) + speed.head_s(num_seqs) + keys + speed.rest_s(num_seqs)


def prompt_s(speed: Speed, network: Network, num_tokens: int, step_tokens: int) -> float:
    """Seconds of a prompt alone, in steps of at most `step_tokens`, up to its first token."""
    total, has_head = 0.0, network.facts.pooling is None
    for index in range(math.ceil(num_tokens / step_tokens)):
        start = index * step_tokens
        count = min(step_tokens, num_tokens - start)
        total += speed.layers_s(count) + speed.pairs_s(network.pairs(start, count))
        total += speed.rest_s(count)
    return total + (speed.head_s(1) if has_head else 0.0)
