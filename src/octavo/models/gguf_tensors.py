"""Tensors of a GGUF file under the names that families give them, in torch.

It has the two methods of a safetensors file that loading needs, so weights of both are filled by the same code. Matrices
of a float type stay mapped; quantized ones are computed, some rows at a time, in the dtype that `stored_dtype` says.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.core.gguf import READ_KINDS, Header, Tensor, read_parts
from octavo.models.gguf_blocks import DECODERS, Decoder
from octavo.models.gguf_config import (
    EMBEDDING,
    FLOAT_KINDS,
    FREQUENCIES,
    HEAD,
    family_of,
    head_counts,
    stored_dtype,
)

CHUNK_VALUES = 1 << 20
"""Values decoded at a time: a few megabytes, which stay in a core's cache from one operation to the next."""
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}


def model_name(name: str) -> str:
    """The name that families give a tensor; its own where they have none, for loading to refuse."""
    if name in _WHOLE:
        return _WHOLE[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _OF_LAYER:
        return name
    return f"model.layers.{match[1]}.{_OF_LAYER[match[2]]}.{match[3]}"


class GgufTensors:
    """One checkpoint, in one file or several. A context manager, so that it stands where a safetensors file does."""

    def __init__(self, path: Path, parts: tuple[Header, ...] = ()) -> None:
        """`parts` are the headers at `path`, where they were read before."""
        parts = parts or read_parts(path)
        self._tensors: dict[str, tuple[Header, Tensor]] = {
            model_name(name): (part, tensor)
            for part in parts
            for name, tensor in part.tensors.items()
            if name != FREQUENCIES  # read with the config
        }
        self._maps: dict[str, NDArray[np.uint8]] = {}
        known = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        self._dtype: torch.dtype = getattr(torch, stored_dtype(known))
        heads, kv_heads = head_counts(parts[0])
        is_interleaved = family_of(parts[0]).is_interleaved
        self._heads = {"q_proj": heads, "k_proj": kv_heads} if is_interleaved else {}

    def __enter__(self) -> GgufTensors:
        return self

    def __exit__(self, *_: object) -> None:
        # Tensors that stayed mapped hold the map.
        self._maps.clear()

    def keys(self) -> list[str]:
        """Names of all tensors, in the order in which they lie in the file."""
        return list(self._tensors)

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor's values; a view of the mapped file where that is possible."""
        part, tensor = self._tensors[name]
        rows = self._rows(part, tensor)
        heads = self._heads.get(name.split(".")[-2], 0) if name.count(".") > 1 else 0
        if heads and len(rows) % (2 * heads) == 0:
            # Features 2i and 2i+1 are a pair there, i and i + half of a head here.
            split = rows.reshape(heads, len(rows) // heads // 2, 2, -1)
            rows = np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)
        if tensor.kind in FLOAT_KINDS:
            dtype: torch.dtype = getattr(torch, FLOAT_KINDS[tensor.kind])
            return torch.from_numpy(rows.reshape(-1)).view(dtype).view(tensor.shape)
        return self._decoded(rows, tensor)

    def _rows(self, part: Header, tensor: Tensor) -> NDArray[np.uint8]:
        """The tensor's bytes, one row for each first index (of a vector: for each value or block)."""
        if part.path not in self._maps:
            # Copied on write: torch wants memory that it may write to, and nobody writes.
            self._maps[part.path] = np.memmap(part.path, np.uint8, "c").view(np.ndarray)
        raw = self._maps[part.path][tensor.offset : tensor.offset + tensor.num_bytes]
        kind = READ_KINDS[tensor.kind]
        count = tensor.shape[0] if len(tensor.shape) > 1 else tensor.shape[0] // kind.block_values
        return raw.reshape(count, -1)

    def _decoded(self, rows: NDArray[np.uint8], tensor: Tensor) -> torch.Tensor:
        """A matrix in the checkpoint's dtype; a vector in float32, since it is small and mostly a norm."""
        kind, decode = READ_KINDS[tensor.kind], DECODERS[tensor.kind]
        blocks = rows.reshape(-1, kind.block_bytes)
        found = torch.empty(
            (len(blocks), kind.block_values),
            dtype=self._dtype if len(tensor.shape) > 1 else torch.float32,
        )
        step, threads = CHUNK_VALUES // kind.block_values, torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            # A chunk per thread at a time, so that few values are there in float32.
            for first in range(0, len(blocks), step * threads):
                begins = range(first, min(first + step * threads, len(blocks)), step)
                chunks = [blocks[begin : begin + step] for begin in begins]
                for begin, values in zip(
                    begins, pool.map(partial(_values, decode), chunks), strict=True
                ):
                    found[begin : begin + step] = torch.from_numpy(values)
        return found.view(tensor.shape)


def _values(decode: Decoder, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # of a scale that is not a finite number
        return decode(blocks)
