"""Where a checkpoint says what it is: config.json of a folder, and files beside it; or the header of a GGUF file. No torch."""

from __future__ import annotations

from pathlib import Path

from octavo.core.gguf import is_gguf, read_parts
from octavo.models.config import Config, read_json
from octavo.models.gguf_config import config_of

QUANTIZE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Where AutoGPTQ (https://github.com/AutoGPTQ/AutoGPTQ, quantization/config.py) and AutoAWQ once kept what is now a section
of config.json, and the `quant_method` that went without saying."""


def read_config(model: Path) -> Config:
    """What the model says of itself, under the keys of a config.json.

    Raises:
        ModelError: a file that is not there or malformed.
    """
    if is_gguf(model):
        return Config(config_of(read_parts(model)), str(model))
    path = model / "config.json"
    return Config(read_json(path), str(path))


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
