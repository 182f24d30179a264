"""A tokenizer out of a GGUF file's metadata: what the file's converter wrote down of tokenizer.json or of a sentencepiece
model is put together again with the `tokenizers` library.

It knows the keys that begin with `tokenizer.`, and the sampling defaults. Templates are text for `chat.py`, no more.
Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what a name of `tokenizer.ggml.pre` stands for:
https://github.com/ggml-org/llama.cpp/blob/b6000/src/llama-vocab.cpp (regular expressions) and the tokenizer.json of the
models that it is named after (normalizing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from octavo.core.errors import ModelError
from octavo.core.gguf import Header, Value, read_header
from octavo.text.tokenizer_facts import TokenizerFacts

MAX_PIECE_CHARS = 256
"""Of a sentencepiece token: every place where it might be cut in two is looked at."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPACE = "▁"

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_DIGITS_BY_ONE = rf"(?i:{_CONTRACTIONS})|{_WORDS}|\p{{N}}|{_REST}"
_DIGITS_BY_THREE = rf"(?i:{_CONTRACTIONS})|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Splitting(NamedTuple):
    """How a text is cut into words before byte pairs are merged within each."""

    patterns: tuple[str, ...]
    """Each cuts the pieces that the one before it left."""
    ignores_merges: bool = False
    """Whether a word that is a token is that token, whatever merges would make of it."""
    adds_bos: bool = False
    """Unless the file says otherwise."""
    composes: bool = False
    """Whether the text is brought to Unicode's NFC."""


SPLITTINGS: dict[str, Splitting] = {
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "deepseek-r1-qwen": Splitting((_DIGITS_BY_ONE,)),
    "gpt-2": Splitting((_GPT2,)),
    "llama-bpe": Splitting((_DIGITS_BY_THREE,), ignores_merges=True, adds_bos=True),
    "qwen2": Splitting((_DIGITS_BY_ONE,), composes=True),
    "smollm": Splitting((r"\p{N}", _GPT2)),
    "tekken": Splitting((_CASED,), ignores_merges=True, adds_bos=True),
}
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "smaug-bpe": "llama-bpe"}

_NAMED = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # so spelled in files
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
_ENDS = frozenset(
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<end_of_turn>", "<|end_of_text|>"]
)  # fmt: skip
"""Control tokens that end an answer, whatever the file calls them; a file names one or two, models use several."""
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_T = TypeVar("_T")


def load(path: Path) -> tuple[Backend, TokenizerFacts]:
    """The tokenizer that a GGUF file holds.

    Raises:
        ModelError: the file is malformed, or its tokenizer is of a kind that is not known.
    """
    return build(read_header(path))


def build(header: Header) -> tuple[Backend, TokenizerFacts]:
    """`load`, of a header that has been read."""
    keys = _Keys(header)
    kind = keys.string("tokenizer.ggml.model")
    if kind not in _BUILDERS:
        keys.refuse(f"tokenizer.ggml.model is {kind!r:.80}; {', '.join(_BUILDERS)} are read")
    tokens = keys.values("tokenizer.ggml.tokens", str)
    types = keys.values("tokenizer.ggml.token_type", int, default=(NORMAL,) * len(tokens))
    if not tokens or len(types) != len(tokens):
        keys.refuse(f"it has {len(tokens)} tokens and {len(types)} types of tokens")
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or "" in vocab:
        keys.refuse("two of its tokens are the same, or one is empty")
    try:
        backend, adds_bos = _BUILDERS[kind](keys, vocab, tokens)
        added = [
            AddedToken(token, special=types[number] != USER_DEFINED, normalized=False)
            for number, token in enumerate(tokens)
            if types[number] in (CONTROL, USER_DEFINED, UNKNOWN)
        ]
        backend.add_tokens(added)
    except ModelError:
        raise
    except (
        BaseException
    ) as error:  # the library raises nothing narrower, and its panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        keys.refuse(f"its tokenizer cannot be built: {error!s:.200}")
    ends = {
        number for token, number in vocab.items() if token in _ENDS and types[number] == CONTROL
    }
    named = {
        name: keys.token(f"tokenizer.ggml.{key}_token_id", tokens) for name, key in _NAMED.items()
    }
    closing = [
        keys.token_id(f"tokenizer.ggml.{key}_token_id", tokens) for key in ("eos", "eot", "eom")
    ]
    facts = TokenizerFacts(
        specials={name: token for name, token in named.items() if token},
        templates=_templates(keys),
        default_sampling=_sampling(keys),
        eos_token_ids=tuple(
            dict.fromkeys([number for number in closing if number is not None] + sorted(ends))
        ),
        add_bos=keys.truth("tokenizer.ggml.add_bos_token", default=adds_bos),
        add_eos=keys.truth("tokenizer.ggml.add_eos_token", default=False),
    )
    return backend, facts


def _byte_level(keys: _Keys, vocab: dict[str, int], tokens: Sequence[str]) -> tuple[Backend, bool]:
    """Byte-level BPE, and whether it begins a text with a token unless told."""
    name = keys.string("tokenizer.ggml.pre", "default")
    rules = SPLITTINGS.get(_SAME.get(name, name))
    if rules is None:
        known = ", ".join(sorted([*SPLITTINGS, *_SAME]))
        keys.refuse(f"tokenizer.ggml.pre is {name!r:.80}; {known} are read")
    pairs = []
    for merge in keys.values("tokenizer.ggml.merges", str):
        middle = merge.find(" ", 1)
        if middle < 0:
            keys.refuse(
                f"tokenizer.ggml.merges holds {merge!r:.80}; expected two tokens and a space"
            )
        pairs.append((merge[:middle], merge[middle + 1 :]))
    backend = Backend(models.BPE(vocab, pairs, ignore_merges=rules.ignores_merges))
    if rules.composes:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(one), behavior="isolated") for one in rules.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, rules.adds_bos


def _sentencepiece(
    keys: _Keys, vocab: dict[str, int], tokens: Sequence[str]
) -> tuple[Backend, bool]:
    """BPE over characters, whose merges follow from the tokens' scores; unknown characters become bytes."""
    scores = keys.values("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        keys.refuse(
            f"it has {len(tokens)} tokens and {len(scores)} scores; expected a number for each"
        )
    for key in ("tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap"):
        if keys.metadata.get(key):
            keys.refuse(f"{key} is set, which is not supported with tokens of this kind")
    longest = max(map(len, tokens))
    if longest > MAX_PIECE_CHARS:
        keys.refuse(f"a token has {longest} characters; at most {MAX_PIECE_CHARS} are read")
    unknown = keys.token("tokenizer.ggml.unknown_token_id", tokens)
    backend = Backend(
        models.BPE(
            vocab, _merges(vocab, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    is_spaced = keys.truth("tokenizer.ggml.add_space_prefix", default=True)
    prefix = [normalizers.Prepend(_SPACE)] if is_spaced else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if is_spaced else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend, True


def _merges(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All ways to make a token of two others, the token with the highest score first.

    Sentencepiece merges the neighbours whose token has the highest score; which two make it is left open, and ordered here
    by length and id, longer and lower first, as in https://github.com/huggingface/transformers/blob/v4.57.0/src/
    transformers/convert_slow_tokenizer.py (generate_merges).
    """
    found = []
    for token, number in vocab.items():
        for middle in range(1, len(token)):
            left, right = token[:middle], token[middle:]
            if left in vocab and right in vocab:
                order = (
                    -scores[number],
                    -len(left),
                    -len(right),
                    number,
                    vocab[left],
                    vocab[right],
                )
                found.append((order, left, right))
    found.sort()
    return [(left, right) for _, left, right in found]


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _templates(keys: _Keys) -> dict[str, str]:
    found = {}
    if "tokenizer.chat_template" in keys.metadata:
        found["default"] = keys.string("tokenizer.chat_template")
    for name in keys.values("tokenizer.chat_templates", str, default=()):
        key = f"tokenizer.chat_template.{name}"
        if key in keys.metadata:
            found[name] = keys.string(key)
    return found


def _sampling(keys: _Keys) -> dict[str, float | int]:
    """The author's defaults; -1 and the like stand for none."""
    found: dict[str, float | int] = {}
    for key, name in _SAMPLING.items():
        value = keys.metadata.get(f"general.sampling.{key}")
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            keys.refuse(f"general.sampling.{key} is {value!r:.80}; expected a number")
        if value >= 0:
            # Files keep float32: 0.7 there is 0.69999998807 here.
            found[name] = int(value) if name == "top_k" else float(f"{value:.6g}")
    return found


class _Keys:
    """Checked reads of the metadata."""

    def __init__(self, header: Header) -> None:
        self.metadata: dict[str, Value] = header.metadata
        self._path = header.path

    def refuse(self, what: str) -> NoReturn:
        raise ModelError(
            f"{self._path}: {what}.",
            code="E-TOK-01",
            fix="Give the folder of the model's own tokenizer with --tokenizer.",
        )

    def string(self, key: str, default: str | None = None) -> str:
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            self.refuse(f"{key} is {value!r:.80}; expected a string")
        return value

    def truth(self, key: str, *, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            self.refuse(f"{key} is {value!r:.80}; expected true or false")
        return value

    def values(
        self, key: str, kind: type[_T], default: tuple[_T, ...] | None = None
    ) -> tuple[_T, ...]:
        """An array of one type, which the file's header holds as such."""
        value: Any = self.metadata.get(key, default)
        # A file's array has one type but for truth values, which are numbers to Python.
        if not isinstance(value, tuple) or (value and type(value[0]) is not kind):
            self.refuse(f"{key} is {value!r:.80}; expected an array of {kind.__name__}")
        return value

    def token_id(self, key: str, tokens: Sequence[str]) -> int | None:
        """The id under a key; None where the key is not there."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
            self.refuse(f"{key} is {value!r:.80}; expected an id of {len(tokens)} tokens")
        return value

    def token(self, key: str, tokens: Sequence[str]) -> str | None:
        """The text of the token whose id is under a key."""
        number = self.token_id(key, tokens)
        return None if number is None else tokens[number]
