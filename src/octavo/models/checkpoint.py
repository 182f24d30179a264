"""Where a checkpoint says what it is: config.json of a folder, or the header of a GGUF file. No torch."""

from __future__ import annotations

from pathlib import Path

from octavo.core.gguf import is_gguf, read_parts
from octavo.models.config import Config, read_json
from octavo.models.gguf_config import config_of


def read_config(model: Path) -> Config:
    """What the model says of itself, under the keys of a config.json.

    Raises:
        ModelError: a file that is not there or malformed.
    """
    if is_gguf(model):
        return Config(config_of(read_parts(model)), str(model))
    path = model / "config.json"
    return Config(read_json(path), str(path))
