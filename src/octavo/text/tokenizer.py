"""Text to token ids and back, for one model folder.

Wraps the `tokenizers` library and the small files beside tokenizer.json. It knows nothing of chats (see `chat.py`)
and keeps no state per request (see `detokenize.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Backend

from octavo.core.errors import ModelError, RequestError
from octavo.core.gguf import is_gguf
from octavo.text import files, gguf
from octavo.text.pieces import Pieces, TextStream
from octavo.text.tokenizer_facts import TokenizerFacts

_BRIEF_CHARS = 8192
"""Text up to this length takes a few milliseconds."""


class Encoded(NamedTuple):
    """A text, or a pair of them, as token ids."""

    token_ids: list[int]
    pair_start: int
    """Where the second text begins for a model that tells the two apart; 0 where there is one, or it does not."""


class Tokenizer:
    """One model's tokenizer. Frozen after loading; every method may be called from any thread.

    `Tokenizer.load` reads a model folder. The constructor takes ownership of `backend`.
    """

    def __init__(self, backend: Backend, facts: TokenizerFacts | None = None) -> None:
        facts = facts or TokenizerFacts()
        # A prompt is never cut or padded here, whatever tokenizer.json was saved with.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.special_tokens: dict[str, str] = facts.specials
        """Named special tokens, as chat templates see them."""
        self.chat_templates: dict[str, str] = facts.templates
        """Chat templates by name; empty when the model brings none."""
        self.default_sampling: dict[str, float | int] = facts.default_sampling
        """Sampling defaults of the model's author, under the names of generation_config.json."""
        self._pieces = Pieces(backend, _mark_special(backend, facts))
        self._vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocab.values(), default=-1) + 1
        """Highest token id plus one, added tokens included."""
        self.bos_token = facts.specials.get("bos_token")
        self.bos_token_id = self._vocab.get(self.bos_token or "")
        eos_id = self._vocab.get(facts.specials.get("eos_token", ""))
        own = () if eos_id is None else (eos_id,)
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys(facts.eos_token_ids + own))
        """Every token that ends a text, generation_config.json's first."""
        probe = backend.encode("a").ids
        self._bos = _End.of(facts.add_bos, self.bos_token_id, probe[:1])
        self._eos = _End.of(facts.add_eos, eos_id, probe[-1:])

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json and what stands beside it, or the metadata of a GGUF file.

        Raises:
            ModelError: a file is missing or malformed; the message names it and what to do.
        """
        if is_gguf(folder):
            return cls(*gguf.load(folder))
        config = files.read_object(folder / "tokenizer_config.json")
        special_map = files.read_object(folder / "special_tokens_map.json")
        path = folder / "generation_config.json"
        generation = files.read_object(path)
        eos_path = path if "eos_token_id" in generation else folder / "config.json"
        eos_source = generation if eos_path == path else files.read_object(eos_path)
        backend = _load_backend(folder)
        _add_declared(backend, config, folder)
        facts = TokenizerFacts(
            specials=files.special_tokens(config, special_map),
            extra_specials=tuple(files.extra_special_tokens(config, special_map)),
            templates=files.chat_templates(folder, config),
            default_sampling=files.sampling_defaults(generation, path),
            eos_token_ids=tuple(files.eos_ids(eos_source, eos_path)),
            add_bos=_flag(config, "add_bos_token"),
            add_eos=_flag(config, "add_eos_token"),
        )
        return cls(backend, facts)

    def ordinary_vocab_size(self) -> int:
        """Highest token id plus one, without added tokens."""
        return max(self._backend.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written out in it become their ids.

        Raises:
            RequestError: `text` holds half a surrogate pair, which no UTF-8 text can.
        """
        _check_unicode(text)
        ids = self._encoding(text, add_special_tokens=add_special_tokens).ids
        return self._with_ends(ids) if add_special_tokens else ids

    def encode_within(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_tokens: int | None = None,
        side: Literal["left", "right"] = "right",
        add_special_tokens: bool = True,
    ) -> Encoded:
        """Token ids of a text or of a pair, with the special tokens that belong around them, in at most `max_tokens`.

        What does not fit is dropped on `side`; of a pair, the longer text is cut first, as transformers does by default.

        Raises:
            RequestError: half a surrogate pair, or fewer tokens allowed than the special ones are.
        """
        _check_unicode(text)
        first = self._encoding(text)
        second = None
        if pair is not None:
            _check_unicode(pair)
            second = self._encoding(pair)
        if max_tokens is not None:
            room = max_tokens
            if add_special_tokens:
                room -= self._backend.num_special_tokens_to_add(second is not None)
                room -= len(self._with_ends([0, 0, 0])) - 3
            if room < 0:
                raise RequestError(
                    f"truncate_prompt_tokens is {max_tokens}, and special tokens alone are {max_tokens - room}.",
                    param="truncate_prompt_tokens",
                )
            sizes = _longest_first(len(first.ids), len(second.ids) if second else 0, room)
            for part, size in zip((first, second), sizes, strict=True):
                if part is not None:
                    part.truncate(size, direction=side)
        whole = self._backend.post_process(first, second, add_special_tokens=add_special_tokens)
        ids: list[int] = whole.ids
        types: list[int] = whole.type_ids
        start = types.index(1) if pair is not None and 1 in types else 0
        if not add_special_tokens:
            return Encoded(ids, start)
        ended = self._with_ends(ids)
        return Encoded(ended, start + len(self._bos.adds) - self._bos.drops if start else 0)

    def _encoding(self, text: str, *, add_special_tokens: bool = False) -> Encoding:
        """What the library makes of a text, without offsets where it is long.

        For one text it holds the interpreter's lock all the while, a second per million characters in which no other
        thread answers a call; for a batch it lets go of it.
        """
        if len(text) <= _BRIEF_CHARS:
            return self._backend.encode(text, add_special_tokens=add_special_tokens)
        return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]

    def first_tokens(self, text: str, max_tokens: int) -> str:
        """`text` up to the end of its first `max_tokens` tokens; all of it when it has no more."""
        _check_unicode(text)
        encoding = self._backend.encode_batch([text], add_special_tokens=False)[0]
        if len(encoding.ids) <= max_tokens:
            return text
        return text[: encoding.offsets[max_tokens - 1][1]]

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """The text of `ids`; ids outside the vocabulary stand for nothing.

        With `spaces_between_special_tokens` false, a special token right after another is written as it is, where the
        tokenizer's decoder would put a space (only WordPiece and plain word lists do).
        """
        stream = self.stream(
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )
        return "".join([*map(stream.feed, ids), stream.flush()])

    def stream(
        self,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        kept_ids: frozenset[int] = frozenset(),
    ) -> TextStream:
        """A decoder for tokens that come one by one; `kept_ids` are special tokens that are never skipped."""
        return TextStream(
            self._pieces,
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
            kept_ids=kept_ids,
        )

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves this token out."""
        return token_id in self._pieces.special_ids

    def special_ids(self, tokens: Iterable[str]) -> dict[int, str]:
        """Those of `tokens` that are special tokens, by id."""
        found = {self._vocab.get(token): token for token in tokens}
        return {i: token for i, token in found.items() if i is not None and self.is_special(i)}

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self._vocab.get(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this token stands for inside a text; empty for an id outside the vocabulary."""
        return self._pieces.inner(token_id)

    def token_text(self, token_id: int) -> str:
        """The token alone, as text; replacement characters where it is not whole characters."""
        return self._pieces.inner(token_id).decode(errors="replace")

    def to_json(self) -> str:
        """The tokenizer as tokenizer.json would say it, with every added token."""
        return str(self._backend.to_str())

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token sequences to forbid: each word as it starts a text, and as it follows a space.

        The second form is kept only where it is another first token and equally long, as in
        https://github.com/vllm-project/vllm/blob/v0.10.0/vllm/sampling_params.py (update_from_tokenizer).

        Raises:
            RequestError: a word stands for no token.
        """
        found: list[tuple[int, ...]] = []
        for word in words:
            plain = tuple(self.encode(word.lstrip(), add_special_tokens=False))
            if not plain:
                raise RequestError(
                    f"bad_words holds {word!r}, which stands for no token.", param="bad_words"
                )
            found.append(plain)
            spaced = tuple(self.encode(" " + word.lstrip(), add_special_tokens=False))
            if len(spaced) == len(plain) and spaced[0] != plain[0]:
                found.append(spaced)
        return tuple(dict.fromkeys(found))

    def _with_ends(self, ids: list[int]) -> list[int]:
        """`ids` with the first and last token that tokenizer_config.json wants."""
        if self._bos.drops:
            ids = ids[1:]
        if self._eos.drops:
            ids = ids[:-1]
        return [*self._bos.adds, *ids, *self._eos.adds]


class _End(NamedTuple):
    """How the post processor's first or last token has to be corrected."""

    adds: tuple[int, ...]
    drops: bool

    @classmethod
    def of(cls, wanted: bool | None, token_id: int | None, probe: list[int]) -> _End:
        is_there = token_id is not None and probe == [token_id]
        adds = (token_id,) if wanted and token_id is not None and not is_there else ()
        return cls(adds, drops=wanted is False and is_there)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds the lone surrogate {text[error.start]!r} at character {error.start};"
            " expected valid Unicode."
        ) from error


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of two texts is kept when tokens are dropped from the longer one until both fit.

    An odd token goes to the longer text, to the second of equal ones, as in the tokenizers library.
    """
    if first + second <= room:
        return first, second
    small = min(first, second)
    if 2 * small <= room:
        return (small, room - small) if first <= second else (room - small, small)
    return (room - room // 2, room // 2) if first > second else (room // 2, room - room // 2)


def _flag(config: dict[str, Any], name: str) -> bool | None:
    value = config.get(name)
    return value if isinstance(value, bool) else None


def _load_backend(folder: Path) -> Backend:
    path = folder / "tokenizer.json"
    if not path.is_file():
        has_other = any((folder / name).exists() for name in ("tokenizer.model", "vocab.json"))
        saving = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        raise ModelError(
            f"there is no tokenizer.json in {folder}.",
            code="E-TOK-01",
            fix=f"Convert the tokenizer once with transformers: {saving}."
            if has_other
            else "Point to the folder that holds config.json and tokenizer.json, or download the file.",
        )
    text = files.read_text(path)
    files.check_merges(text, path)
    try:
        backend: Backend = Backend.from_str(text)
    except (
        BaseException
    ) as error:  # the library raises nothing narrower, and its panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ModelError(
            f"{path} cannot be loaded: {error}.",
            code="E-TOK-01",
            fix="Download it again; if that fails, the installed tokenizers package may be too old.",
        ) from error
    return backend


def _add_declared(backend: Backend, config: dict[str, Any], folder: Path) -> None:
    """Tokens that only tokenizer_config.json declares, at the ids it gives them."""
    declared = files.declared_tokens(config, folder / "tokenizer_config.json")
    vocab = backend.get_vocab(with_added_tokens=True) if declared else {}
    for token_id, row in declared:
        if row["content"] in vocab:
            continue
        options = {k: row[k] for k in ("lstrip", "rstrip", "normalized", "single_word") if k in row}
        backend.add_tokens(
            [AddedToken(row["content"], special=row.get("special", False), **options)]
        )
        given = backend.token_to_id(row["content"])
        if given != token_id:
            raise ModelError(
                f"tokenizer_config.json in {folder} declares {row['content']!r} as id {token_id}, but after"
                f" tokenizer.json it can only be {given}.",
                code="E-TOK-01",
                fix="The two files are of different versions; download both again.",
            )


def _mark_special(backend: Backend, facts: TokenizerFacts) -> frozenset[int]:
    """Ids of all special tokens: those flagged so, and those only named so, which are flagged here.

    A name never makes a new token.
    """
    added = backend.get_added_tokens_decoder()
    found = {token_id for token_id, token in added.items() if token.special}
    for content in dict.fromkeys([*facts.specials.values(), *facts.extra_specials]):
        token_id = backend.token_to_id(content)
        if token_id is not None and token_id not in found:
            backend.add_special_tokens([content])
            found.add(token_id)
    return frozenset(found)
