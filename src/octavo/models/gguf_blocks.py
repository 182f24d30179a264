"""The values of quantized blocks as float32, with numpy: the formats of GGUF files. No torch.

The arithmetic and its order are those of ggml's own reference, so values are the same to the last bit:
https://github.com/ggml-org/llama.cpp/blob/b6000/ggml/src/ggml-quants.c (dequantize_row_*). Shape letters: N blocks,
B bytes of a block, S sub-blocks, V values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Decoder = Callable[[Bytes], Floats]

_LOW = np.uint8(0x0F)


def _half(blocks_NB: Bytes, begin: int) -> Floats:
    """The float16 at a byte of every block, [N, 1]."""
    raw = np.ascontiguousarray(blocks_NB[:, begin : begin + 2])
    return raw.view(np.float16).astype(np.float32)


def _nibbles(packed_NB: Bytes, run: int) -> Bytes:
    """Of each run of bytes the low halves, then the high ones."""
    runs = packed_NB.reshape(len(packed_NB), -1, 1, run)
    return np.concatenate([runs & _LOW, runs >> np.uint8(4)], axis=2).reshape(len(packed_NB), -1)


def _fifth_bits(packed_NB: Bytes) -> Bytes:
    """32 bits of every block, lowest first, each as 0 or 16."""
    return np.unpackbits(packed_NB, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(blocks_NB: Bytes) -> Floats:
    levels = _nibbles(blocks_NB[:, 2:], 16).view(np.int8) - np.int8(8)
    return _half(blocks_NB, 0) * levels


def _q4_1(blocks_NB: Bytes) -> Floats:
    return _half(blocks_NB, 0) * _nibbles(blocks_NB[:, 4:], 16) + _half(blocks_NB, 2)


def _q5_0(blocks_NB: Bytes) -> Floats:
    levels = _nibbles(blocks_NB[:, 6:], 16) | _fifth_bits(blocks_NB[:, 2:6])
    return _half(blocks_NB, 0) * (levels.view(np.int8) - np.int8(16))


def _q5_1(blocks_NB: Bytes) -> Floats:
    levels = _nibbles(blocks_NB[:, 8:], 16) | _fifth_bits(blocks_NB[:, 4:8])
    return _half(blocks_NB, 0) * levels + _half(blocks_NB, 2)


def _q8_0(blocks_NB: Bytes) -> Floats:
    return _half(blocks_NB, 0) * blocks_NB[:, 2:].view(np.int8)


def _scales(packed_NB: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of six bits each, out of twelve bytes."""
    first, second, rest = packed_NB[:, :4], packed_NB[:, 4:8], packed_NB[:, 8:]
    high, top = np.uint8(0x30), np.uint8(0x3F)
    scales = [first & top, (rest & _LOW) | ((first >> np.uint8(2)) & high)]
    minima = [second & top, (rest >> np.uint8(4)) | ((second >> np.uint8(2)) & high)]
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def _scaled(blocks_NB: Bytes, levels_NV: Bytes) -> Floats:
    """Levels of eight sub-blocks, by their scales and minima."""
    scales_NS, minima_NS = _scales(blocks_NB[:, 4:16])
    scale = (_half(blocks_NB, 0) * scales_NS)[:, :, None]
    least = (_half(blocks_NB, 2) * minima_NS)[:, :, None]
    values = scale * levels_NV.reshape(len(blocks_NB), 8, 32)
    values -= least
    return values.reshape(len(blocks_NB), 256)


def _q4_k(blocks_NB: Bytes) -> Floats:
    return _scaled(blocks_NB, _nibbles(blocks_NB[:, 16:], 32))


def _q5_k(blocks_NB: Bytes) -> Floats:
    bits = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = (blocks_NB[:, None, 16:48] >> bits) & np.uint8(1)
    levels = _nibbles(blocks_NB[:, 48:], 32)
    levels |= (fifth << np.uint8(4)).reshape(len(blocks_NB), 256)
    return _scaled(blocks_NB, levels)


def _q6_k(blocks_NB: Bytes) -> Floats:
    count = len(blocks_NB)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = (blocks_NB[:, 128:192].reshape(count, 2, 1, 32) >> shifts) & np.uint8(3)
    levels = _nibbles(blocks_NB[:, :128], 64) | (high << np.uint8(4)).reshape(count, 256)
    scales_NS = blocks_NB[:, 192:208].view(np.int8)
    scale = (_half(blocks_NB, 208) * scales_NS)[:, :, None]
    signed = (levels.view(np.int8) - np.int8(32)).reshape(count, 16, 16)
    return (scale * signed).reshape(count, 256)


DECODERS: dict[str, Decoder] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""Kind -> blocks [N, B] to values [N, V]. A block whose scale is not a finite number has such values."""
