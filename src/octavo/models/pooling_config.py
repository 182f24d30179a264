"""What a folder says about pooling: config.json of a classifier, and the files that sentence-transformers writes. No torch.

Of the latter: modules.json lists the steps after the network, each with a folder and a config.json of its own. What is
listed is honoured or refused, because leaving a step out would give other vectors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from octavo.core.errors import ConfigError, ModelError
from octavo.layers.pool_spec import OutputActivation, PoolKind, PoolSpec, Stage, StageActivation
from octavo.models.checkpoint import read_config
from octavo.models.config import MAX_JSON_BYTES, Config, read_json

Runner = Literal["auto", "generate", "pooling"]
MAX_LABELS = 65_536
MAX_MODULES = 16

_KINDS: dict[str, PoolKind] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_OLD_KINDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_CURVES: dict[str, StageActivation] = {
    "Identity": "none",
    "Tanh": "tanh",
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
_OUTPUTS: dict[str, OutputActivation] = {
    "Identity": "none",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
}
_PROBLEMS: dict[str, OutputActivation] = {
    "regression": "none",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}


def embedder(config: Config, kind: PoolKind) -> PoolSpec:
    """An embedding from `kind`, scaled to length 1, unless the folder's modules.json says otherwise."""
    dimensions = config.data.get("matryoshka_dimensions") or []
    is_list = isinstance(dimensions, list) and len(dimensions) <= MAX_LABELS
    if not is_list or not all(isinstance(size, int) and size > 0 for size in dimensions):
        config.refuse("matryoshka_dimensions", "a list of numbers of features")
    return PoolSpec(
        tasks=("embed", "token_embed"),
        kind=kind,
        normalizes=True,
        is_matryoshka=bool(dimensions) or config.boolean("is_matryoshka", default=False),
        matryoshka_dimensions=tuple(dimensions),
        reason=f"{kind} pooling, what the architecture does by default",
    )


def decoder_embedder(config: Config) -> PoolSpec:
    """The last token has seen all the others."""
    return embedder(config, "last")


def decoder_classifier(config: Config) -> PoolSpec:
    """One projection of the last token's hidden state."""
    labels = read_labels(config)
    inputs = config.integer("hidden_size")
    stage = Stage(name="score", num_inputs=inputs, num_outputs=len(labels), has_bias=False)
    return classifier(config, "last", (stage,), labels)


def classifier(
    config: Config, kind: PoolKind, stages: tuple[Stage, ...], labels: tuple[str, ...]
) -> PoolSpec:
    """A pooler that ends in one logit per label. With a single one it is a score, too."""
    return PoolSpec(
        tasks=("classify", "score") if len(labels) == 1 else ("classify",),
        kind=kind,
        stages=stages,
        output=_output(config, len(labels)),
        labels=labels,
        reason="the classifier of config.json's architecture",
    )


def read_labels(config: Config) -> tuple[str, ...]:
    """Names of the logits, from `id2label`; two without a name where the key is absent, as in transformers.

    Raises:
        ModelError: it is not a table from 0, 1, 2 .. to names.
    """
    table = config.section("id2label").data
    if not table:
        return ("LABEL_0", "LABEL_1")
    expected = {str(index) for index in range(len(table))}
    names = [table.get(str(index)) for index in range(min(len(table), MAX_LABELS + 1))]
    if set(table) != expected or len(table) > MAX_LABELS:
        config.refuse("id2label", f"names of 0, 1, 2 .. (at most {MAX_LABELS})")
    return tuple(str(name) for name in names)


def _output(config: Config, num_labels: int) -> OutputActivation:
    """What makes probabilities of logits: as named in the config, else a sigmoid of one and a softmax of several."""
    section = config.section("sentence_transformers")
    for holder, key in (
        (section, "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
    ):
        if holder.has(key):
            name = holder.string(key).rpartition(".")[2]
            if name not in _OUTPUTS:
                holder.refuse(key, f"one of {', '.join(_OUTPUTS)}")
            return _OUTPUTS[name]
    if config.has("problem_type"):
        problem = config.string("problem_type")
        if problem not in _PROBLEMS:
            config.refuse("problem_type", f"one of {', '.join(_PROBLEMS)}")
        return _PROBLEMS[problem]
    return "sigmoid" if num_labels == 1 else "softmax"


def folder_pooling(
    folder: Path, own: PoolSpec | None, runner: Runner, hidden_size: int
) -> PoolSpec | None:
    """What the model pools, None where it generates. `own` follows from the architecture.

    A generating architecture with a modules.json is an embedder that was trained from it.

    Raises:
        ConfigError: `runner` asks for text from a model that has none.
        ModelError: a step that is not supported, or a malformed file.
    """
    if own is not None and runner == "generate":
        raise ConfigError(
            f"--runner generate, but {folder} holds a model for {', '.join(own.tasks)}.",
            fix="Leave --runner out.",
        )
    modules = folder / "modules.json"
    if runner == "generate" or (own is not None and own.is_classifier):
        return own
    if not modules.is_file():
        if own is None and runner == "pooling":
            own = embedder(read_config(folder), "last")
        return own
    return _read_modules(folder, own or embedder(read_config(folder), "last"), hidden_size)


def _read_modules(folder: Path, spec: PoolSpec, hidden_size: int) -> PoolSpec:
    spec = replace(spec, normalizes=False, max_tokens=_max_tokens(folder))
    size = hidden_size
    seen: list[str] = []
    for row in _rows(folder / "modules.json"):
        name = row.string("type").rpartition(".")[2]
        place = row.string("path", "")
        if Path(place).name != place:
            row.refuse("path", "the name of a folder beside modules.json")
        match name:
            case "Transformer":
                pass
            case "Pooling":
                path = folder / place / "config.json"
                kind = _kind(Config(read_json(path), str(path)))
                spec = replace(
                    spec, kind=kind, reason=f"{kind} pooling, as {place}/config.json says"
                )
            case "Dense" if "Pooling" in seen and "Normalize" not in seen:
                stage = _dense(folder / place, size)
                size = stage.num_outputs
                spec = replace(spec, stages=(*spec.stages, stage))
            case "Normalize":
                spec = replace(spec, normalizes=True)
            case _:
                row.refuse("type", "Transformer, Pooling, Dense (between them) and Normalize")
        seen.append(name)
    return spec


def _rows(path: Path) -> list[Config]:
    try:
        text = path.read_bytes()[: MAX_JSON_BYTES + 1]
        rows: Any = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", code="E-MODEL-02") from error
    is_list = isinstance(rows, list) and 0 < len(rows) <= MAX_MODULES
    if not is_list or not all(isinstance(row, dict) for row in rows):
        raise ModelError(f"{path} is not a list of 1 to {MAX_MODULES} objects.", code="E-MODEL-02")
    return [Config(row, f"{path}: entry {index}") for index, row in enumerate(rows)]


def _max_tokens(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    config = Config(read_json(path), str(path))
    return config.integer("max_seq_length") if config.has("max_seq_length") else None


def _kind(config: Config) -> PoolKind:
    """The one way of pooling that a Pooling module's config asks for; `mean` is the library's default."""
    if config.has("pooling_mode"):
        given = config.data["pooling_mode"]
        modes = [given] if isinstance(given, str) else given
        key = "pooling_mode"
    else:
        modes = [mode for key, mode in _OLD_KINDS.items() if config.boolean(key, default=False)]
        key = next((k for k in _OLD_KINDS if config.has(k)), "pooling_mode")
    if modes == []:
        return "mean"
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _KINDS:
        config.refuse(key, f"one of {', '.join(_KINDS)} (others are not supported)")
    return _KINDS[modes[0]]


def _dense(folder: Path, num_inputs: int) -> Stage:
    path = folder / "config.json"
    config = Config(read_json(path), str(path))
    if config.integer("in_features") != num_inputs:
        config.refuse("in_features", str(num_inputs))
    curve = config.string("activation_function", "torch.nn.modules.activation.Tanh")
    name = curve.rpartition(".")[2]
    if name not in _CURVES:
        config.refuse("activation_function", f"one of {', '.join(_CURVES)}")
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"there is no model.safetensors in {folder}.",
            code="E-MODEL-05",
            fix="Octavo loads safetensors only; load and save the model with sentence-transformers once.",
        )
    return Stage(
        name=f"{folder.name}.linear",
        num_inputs=num_inputs,
        num_outputs=config.integer("out_features"),
        has_bias=config.boolean("bias", default=True),
        activation=_CURVES[name],
        folder=folder.name,
    )
