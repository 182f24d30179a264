"""Where the models inside the package are, and how a model name becomes a folder."""

from __future__ import annotations

from pathlib import Path

from octavo.core.config import BUNDLED_MODEL, EngineConfig
from octavo.core.errors import ModelError, did_you_mean
from octavo.core.gguf import is_gguf

_ASSETS = Path(__file__).resolve().parent.parent / "assets"


def bundled() -> dict[str, Path]:
    """Name -> folder of every model inside the package."""
    return {path.parent.name: path.parent for path in sorted(_ASSETS.glob("*/config.json"))}


def model_folder(name: str) -> Path:
    """The folder of a model: a path as given, or a bundled model's name; of a GGUF file, the file.

    Raises:
        ModelError: neither a folder with a config.json, nor a GGUF file, nor a bundled name.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file() or (is_gguf(folder) and folder.is_file()):
        return folder
    known = bundled()
    if name in known:
        return known[name]
    if folder.is_dir():
        within = next(iter(sorted(folder.glob("*.gguf"))), None)
        if within is not None:
            raise ModelError(
                f"{name!r} is a folder of GGUF files.",
                code="E-MODEL-02",
                fix=f"Give one of them, such as {within}; of a model in parts, the first.",
            )
        raise ModelError(
            f"no config.json in {name!r}.",
            code="E-MODEL-02",
            fix="Give the folder that holds config.json, the tokenizer and the *.safetensors files.",
        )
    raise ModelError(
        f"no model {name!r}: neither a folder, nor a GGUF file, nor bundled ({', '.join(known) or 'none'})."
        + did_you_mean(name, known),
        code="E-MODEL-01",
        fix=f"Give a model folder or a GGUF file, or leave it out to use {BUNDLED_MODEL}.",
    )


def tokenizer_folder(config: EngineConfig) -> Path:
    """Where the tokenizer is: as given, else with the model, else (for dummy weights only) the bundled one.

    Raises:
        ModelError: neither a folder nor a bundled name.
    """
    if config.tokenizer is not None:
        given = Path(config.tokenizer).expanduser()
        return given if (given / "tokenizer.json").is_file() else model_folder(config.tokenizer)
    folder = model_folder(config.model)
    if is_gguf(folder):
        return folder
    if config.load_format == "dummy" and not (folder / "tokenizer.json").is_file():
        return bundled()[BUNDLED_MODEL]
    return folder
