"""What a model says about its tokenizer beside the tokenizer itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What a model folder says about its tokenizer outside tokenizer.json, or a GGUF file beside its tokens."""

    specials: dict[str, str] = field(default_factory=dict)
    """`bos_token`, `eos_token`, ... -> their text."""
    extra_specials: tuple[str, ...] = ()
    """Special tokens without a name of their own."""
    templates: dict[str, str] = field(default_factory=dict)
    default_sampling: dict[str, float | int] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()
    """Those of generation_config.json."""
    add_bos: bool | None = None
    """What tokenizer_config.json wants at the start; None leaves it to tokenizer.json."""
    add_eos: bool | None = None
