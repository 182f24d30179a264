"""Reads the text files of a model folder: special tokens, generation defaults, chat templates.

It knows file names and their shapes; it does not know how text becomes tokens.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from octavo.core.errors import ModelError

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_TOKEN_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
_HAS_PREFIX = re.compile(r'"continuing_subword_prefix"\s*:\s*"[^"]')
# Sampling defaults that a model's author may set; anything else in the file is not for a server to follow.
_SAMPLING_TYPES: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "max_new_tokens": int,
}


def read_text(path: Path) -> str:
    """The UTF-8 text of a file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"cannot read {path}: {error}.",
            code="E-TOK-01",
            fix="Check the file's permissions, or download it again.",
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when the file is not there.

    Raises:
        ModelError: the file is there and is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not valid JSON: {error}.", code="E-TOK-01", fix="Download the file again."
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{path} holds a JSON {type(value).__name__}; expected an object.",
            code="E-TOK-01",
            fix="Download the file again.",
        )
    return value


def special_tokens(config: dict[str, Any], special_map: dict[str, Any]) -> dict[str, str]:
    """Named special tokens (`bos_token`, `eos_token`, ...); tokenizer_config.json wins over the map."""
    found: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        for source in (config, special_map):
            value = source.get(name)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str) and content:
                found[name] = content
                break
    return found


def declared_tokens(config: dict[str, Any], path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of `added_tokens_decoder`, by id.

    Raises:
        ModelError: it is not a table of ids and tokens.
    """
    table = config.get("added_tokens_decoder") or {}
    rows = table.items() if isinstance(table, dict) else [("?", table)]
    for key, row in rows:
        if not key.isdecimal() or not isinstance(row, dict) or not _is_token(row):
            raise ModelError(
                f"added_tokens_decoder in {path} holds {key!r}: {row!r}; expected ids and tokens.",
                code="E-TOK-01",
                fix="Download the file again.",
            )
    return sorted(((int(key), row) for key, row in rows), key=lambda pair: pair[0])


def _is_token(row: dict[str, Any]) -> bool:
    content = row.get("content")
    flags = (row.get(name, False) for name in _TOKEN_FLAGS)
    return (
        isinstance(content, str) and content != "" and all(isinstance(flag, bool) for flag in flags)
    )


def check_merges(text: str, path: Path) -> None:
    """Refuse merges that do not go on with the prefix that the same tokenizer.json says they do.

    The library would cut that many bytes off each, out of bounds or within a character, and end the process.

    Raises:
        ModelError: there is one.
    """
    if _HAS_PREFIX.search(text) is None:
        return
    try:
        model = json.loads(text).get("model")
        prefix, merges = model["continuing_subword_prefix"], model.get("merges") or ()
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
        wrong = next((pair for pair in pairs if not pair[1].startswith(prefix)), None)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return  # of another shape, of which the library complains
    if wrong is not None:
        raise ModelError(
            f"{path} has the merge {wrong!r:.80}, which does not continue with {prefix!r:.40}.",
            code="E-TOK-01",
            fix="Download the file again.",
        )


def extra_special_tokens(config: dict[str, Any], special_map: dict[str, Any]) -> list[str]:
    """Special tokens without a name of their own. Raises ModelError for what is no list of tokens."""
    found: list[str] = []
    for source in (config, special_map):
        for name in ("additional_special_tokens", "extra_special_tokens"):
            values = source.get(name) or []
            if not isinstance(values, list | dict):
                raise ModelError(
                    f"{name} is {values!r:.80}; expected a list of tokens.",
                    code="E-TOK-01",
                    fix="Correct it in tokenizer_config.json or special_tokens_map.json.",
                )
            for value in values.values() if isinstance(values, dict) else values:
                content = value.get("content") if isinstance(value, dict) else value
                if isinstance(content, str) and content and content not in found:
                    found.append(content)
    return found


def chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name (`default`, `tool_use`, ...); a file of its own wins over tokenizer_config.json."""
    found = _named_templates(config.get("chat_template"), folder / "tokenizer_config.json")
    path = folder / "chat_template.json"
    found |= _named_templates(read_object(path).get("chat_template"), path)
    path = folder / "chat_template.jinja"
    if path.is_file():
        found["default"] = read_text(path)
    for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[extra.stem] = read_text(extra)
    return found


def _named_templates(value: object, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    rows: dict[object, object] = {}
    if isinstance(value, str):
        rows = {"default": value}
    elif isinstance(value, dict):
        rows = dict(value)
    elif isinstance(value, list) and all(isinstance(row, dict) for row in value):
        rows = {row.get("name"): row.get("template") for row in value}
    named = {k: v for k, v in rows.items() if isinstance(k, str) and isinstance(v, str)}
    if not named or len(named) != len(rows):
        raise ModelError(
            f"chat_template in {path} is neither a string nor a list of name and template.",
            code="E-TOK-01",
            fix="Put the template into chat_template.jinja beside it.",
        )
    return named


def sampling_defaults(generation: dict[str, Any], path: Path) -> dict[str, float | int]:
    """The sampling defaults that generation_config.json sets, under the names it uses.

    Raises:
        ModelError: one of them is not a number.
    """
    found: dict[str, float | int] = {}
    for name, kind in _SAMPLING_TYPES.items():
        value = generation.get(name)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_usable = is_number and math.isfinite(value)
        if not is_usable or (kind is int and value != int(value)):
            raise ModelError(
                f"{name} in {path} is {value!r}; expected a number.",
                code="E-TOK-01",
                fix=f"Correct or delete {name} there.",
            )
        found[name] = kind(value)
    return found


def eos_ids(generation: dict[str, Any], path: Path) -> list[int]:
    """`eos_token_id` of a config file, which may be one id, several or none.

    Raises:
        ModelError: it is something else.
    """
    value = generation.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ModelError(
            f"eos_token_id in {path} is {value!r}; expected a token id or a list of them.",
            code="E-TOK-01",
            fix="Correct eos_token_id there.",
        )
    return ids
