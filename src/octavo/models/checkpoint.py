"""Where a checkpoint says what it is: config.json of a folder, and files beside it; or the header of a GGUF file. No torch."""

from __future__ import annotations

from pathlib import Path

from octavo.core.gguf import Header, is_gguf, read_parts
from octavo.models.config import Config, read_json
from octavo.models.gguf_config import config_of

_MAX_VALUES = 1024
"""Of an array of metadata that is kept; vocabularies have more, and nobody asks for them again."""

QUANTIZE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Where AutoGPTQ (https://github.com/AutoGPTQ/AutoGPTQ, quantization/config.py) and AutoAWQ once kept what is now a section
of config.json, and the `quant_method` that went without saying."""


def read_config(model: Path) -> Config:
    """What the model says of itself, under the keys of a config.json; its `parts` are the headers of a GGUF file, without
    long arrays, so that nobody has to read them again: with 150,000 tokens that takes 0.17 s (one core of Zen 5).

    Raises:
        ModelError: a file that is not there or malformed.
    """
    if is_gguf(model):
        parts = read_parts(model)
        return Config(config_of(parts), str(model), tuple(_brief(part) for part in parts))
    path = model / "config.json"
    return Config(read_json(path), str(path))


def _brief(part: Header) -> Header:
    short = {
        name: value
        for name, value in part.metadata.items()
        if not isinstance(value, tuple) or len(value) <= _MAX_VALUES
    }
    return part._replace(metadata=short)


def read_quantize_file(model: Path) -> Config | None:
    """What a file beside config.json says of quantized weights; None where there is none.

    Raises:
        ModelError: it is malformed.
    """
    if is_gguf(model):
        return None
    for name, method in QUANTIZE_FILES.items():
        path = model / name
        if path.is_file():
            return Config({"quant_method": method} | read_json(path), str(path))
    return None
