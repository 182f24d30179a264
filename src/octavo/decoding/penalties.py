"""Everything that edits logits before a token is chosen: bias, penalties and bans.

The order is vLLM's (https://docs.vllm.ai/en/v0.22.1/api/vllm/v1/sample/sampler/): logit bias, then
the repetition, frequency and presence penalties. Bans (allowed ids, bad words, `min_tokens`) set
-inf, which nothing after them undoes, so that their place does not matter; they come last here.

`RowEdits` keeps what one row needs between steps and `apply_edits` edits all rows of a step at
once, touching only the token ids concerned: its cost grows with the distinct tokens of a context,
not with the vocabulary. `reference_edits` says the same for one row in plain words; the tests hold
the two equal.

Shape letters: N rows, V vocabulary, E edited entries over all rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from octavo.core.request import Request
from octavo.decoding.grammar.rows import NO_IDS, IdArray

ValueArray = npt.NDArray[np.float32]


class TokenTally:
    """Distinct token ids of one row and how often each was put out. Owner: the row's `RowEdits`."""

    def __init__(self, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        distinct = dict.fromkeys((*prompt_ids, *output_ids))
        self._slot_of = {token_id: slot for slot, token_id in enumerate(distinct)}
        self._ids = np.fromiter(distinct, np.int64, len(distinct))
        self._counts = np.zeros(len(distinct), np.float32)
        for token_id in output_ids:
            self._counts[self._slot_of[token_id]] += 1

    def append(self, token_id: int) -> None:
        """Count one more output token; amortised O(1)."""
        slot = self._slot_of.setdefault(token_id, len(self._slot_of))
        if slot == len(self._ids):
            room = max(16, len(self._ids))
            self._ids = np.concatenate([self._ids, np.zeros(room, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, np.float32)])
        self._ids[slot] = token_id
        self._counts[slot] += 1

    @property
    def ids(self) -> IdArray:
        """int64: each distinct id once."""
        return self._ids[: len(self._slot_of)]

    @property
    def counts(self) -> ValueArray:
        """float32, beside `ids`: occurrences in the output (0 for tokens of the prompt alone)."""
        return self._counts[: len(self._slot_of)]


class RowEdits:
    """What one row's logits need before each choice. Owner: `SamplerState`."""

    def __init__(self, request: Request, token_ids: Sequence[int], vocab_size: int) -> None:
        params = request.params
        output_ids = token_ids[request.num_prompt :]
        bias = sorted((params.logit_bias or {}).items())
        phrases = [ids for ids in request.bad_words_ids if len(ids) > 1]
        words = [ids[0] for ids in request.bad_words_ids if len(ids) == 1]
        num_tail = max((len(phrase) - 1 for phrase in phrases), default=0)
        self.repetition_penalty = params.repetition_penalty
        self.frequency_penalty = params.frequency_penalty
        self.presence_penalty = params.presence_penalty
        # Ids beyond the vocabulary are dropped: in flattened logits they would hit the next row.
        known_bias = [(token_id, value) for token_id, value in bias if token_id < vocab_size]
        self.bias_ids = _known_ids([token_id for token_id, _ in known_bias], vocab_size)
        self.bias_values: ValueArray = np.asarray([value for _, value in known_bias], np.float32)
        self.allowed_ids: IdArray | None = None
        if params.allowed_token_ids is not None:
            self.allowed_ids = _known_ids(params.allowed_token_ids, vocab_size)
        self._allowed_words: npt.NDArray[np.uint32] | None = None
        self.tally = _tally(request, output_ids, vocab_size)
        self._banned_ids = _known_ids(words, vocab_size)
        self._phrases = [(ids[:-1], ids[-1]) for ids in phrases if ids[-1] < vocab_size]
        self._tail = deque(output_ids, maxlen=num_tail)
        self._stop_ids = _known_ids((*request.eos_token_ids, *params.stop_token_ids), vocab_size)
        self._num_to_min = max(0, params.min_tokens - len(output_ids))

    @property
    def is_active(self) -> bool:
        """Whether the next choice needs any edit."""
        return bool(
            self.tally is not None
            or self.bias_ids.size
            or self.allowed_ids is not None
            or self._banned_ids.size
            or self._phrases
            or (self._num_to_min and self._stop_ids.size)
        )

    def allowed_words(self, vocab_size: int) -> npt.NDArray[np.uint32]:
        """`allowed_ids` as a mask: bit t % 32 of word t // 32. Made once. Only where there are any."""
        if self._allowed_words is None:
            assert self.allowed_ids is not None
            is_allowed = np.zeros(-(-vocab_size // 32) * 32, np.bool_)
            is_allowed[self.allowed_ids] = True
            self._allowed_words = np.packbits(is_allowed, bitorder="little").view(np.uint32)
        return self._allowed_words

    def append(self, token_id: int) -> None:
        """Take note of a new output token."""
        self._num_to_min = max(0, self._num_to_min - 1)
        if self.tally is not None:
            self.tally.append(token_id)
        self._tail.append(token_id)

    def banned_ids(self) -> IdArray:
        """int64: what may not come next: ends of bad words, and stop ids before `min_tokens`."""
        completing = [last for prefix, last in self._phrases if self._ends_with(prefix)]
        stops = self._stop_ids if self._num_to_min else NO_IDS
        if not completing and not stops.size:
            return self._banned_ids
        return np.concatenate([self._banned_ids, stops, np.asarray(completing, np.int64)])

    def _ends_with(self, prefix: tuple[int, ...]) -> bool:
        return tuple(self._tail)[-len(prefix) :] == prefix


def needs_edits(request: Request) -> bool:
    """Whether any choice of the request needs an edit; rows without keep no `RowEdits`."""
    params = request.params
    return bool(
        _has_penalty(request)
        or params.logit_bias
        or params.allowed_token_ids
        or request.bad_words_ids
        or params.min_tokens
    )


def apply_edits(logits_NV: torch.Tensor, edits: Sequence[tuple[int, RowEdits]]) -> None:
    """Edit logits in place, all rows at once.

    Args:
        logits_NV: float32 [N, V], contiguous.
        edits: (n, edits of that row); each n at most once.
    """
    _add_bias(logits_NV, edits)
    _penalise(logits_NV, edits)
    _keep_allowed(
        logits_NV, [(n, edit.allowed_ids) for n, edit in edits if edit.allowed_ids is not None]
    )
    _ban(logits_NV, [(n, edit.banned_ids()) for n, edit in edits])


def _add_bias(logits_NV: torch.Tensor, edits: Sequence[tuple[int, RowEdits]]) -> None:
    entries_E = _entries(logits_NV, [(n, edit.bias_ids) for n, edit in edits])
    if entries_E.numel():
        bias_E = torch.from_numpy(np.concatenate([edit.bias_values for _, edit in edits]))
        flat = logits_NV.view(-1)
        flat[entries_E] = flat[entries_E] + bias_E.to(flat.device, non_blocking=True)


def _penalise(logits_NV: torch.Tensor, edits: Sequence[tuple[int, RowEdits]]) -> None:
    """Repetition (Keskar et al. 2019, https://arxiv.org/abs/1909.05858, 4.1), then OpenAI's two."""
    tallies = [(n, edit, edit.tally) for n, edit in edits if edit.tally is not None]
    entries_E = _entries(logits_NV, [(n, tally.ids) for n, _, tally in tallies])
    if not entries_E.numel():
        return
    lengths = [tally.ids.size for _, _, tally in tallies]
    flat = logits_NV.view(-1)

    def spread(value: Callable[[RowEdits], float]) -> torch.Tensor:
        per_row = np.asarray([value(edit) for _, edit, _ in tallies], np.float32)
        return torch.from_numpy(np.repeat(per_row, lengths)).to(flat.device, non_blocking=True)

    counts = np.concatenate([tally.counts for _, _, tally in tallies])
    counts_E = torch.from_numpy(counts).to(flat.device, non_blocking=True)
    repetition_E = spread(lambda edit: edit.repetition_penalty)
    values_E = flat[entries_E]
    values_E = torch.where(values_E > 0, values_E / repetition_E, values_E * repetition_E)
    values_E = values_E - spread(lambda edit: edit.frequency_penalty) * counts_E
    values_E = values_E - spread(lambda edit: edit.presence_penalty) * (counts_E > 0)
    flat[entries_E] = values_E


def _keep_allowed(logits_NV: torch.Tensor, allowed: Sequence[tuple[int, IdArray]]) -> None:
    if not allowed:
        return
    entries_E = _entries(logits_NV, allowed)
    rows = torch.tensor([n for n, _ in allowed], device=logits_NV.device)
    flat = logits_NV.view(-1)
    kept_E = flat[entries_E]
    logits_NV.index_fill_(0, rows, -torch.inf)
    flat[entries_E] = kept_E


def _ban(logits_NV: torch.Tensor, banned: Sequence[tuple[int, IdArray]]) -> None:
    banned_E = _entries(logits_NV, banned)
    if banned_E.numel():
        logits_NV.view(-1).index_fill_(0, banned_E, -torch.inf)


def _entries(logits_NV: torch.Tensor, parts: Sequence[tuple[int, IdArray]]) -> torch.Tensor:
    """int64 [E]: places of the rows' ids in the flattened logits."""
    width = logits_NV.shape[1]
    pieces = [n * width + ids for n, ids in parts if ids.size]
    flat = np.concatenate(pieces) if pieces else NO_IDS
    return torch.from_numpy(flat).to(logits_NV.device, non_blocking=True)


def _has_penalty(request: Request) -> bool:
    params = request.params
    return bool(
        params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty
    )


def _tally(request: Request, output_ids: Sequence[int], vocab_size: int) -> TokenTally | None:
    if not _has_penalty(request):
        return None
    uses_prompt = request.params.repetition_penalty != 1.0
    prompt_ids = request.token_ids if uses_prompt else ()
    return TokenTally([id_ for id_ in prompt_ids if id_ < vocab_size], output_ids)


def _known_ids(ids: Sequence[int], vocab_size: int) -> IdArray:
    """int64, ascending, each once, without those beyond the vocabulary."""
    unique: IdArray = np.unique(np.asarray(ids, np.int64))
    return unique[unique < vocab_size]


def reference_edits(
    logits_V: torch.Tensor, request: Request, token_ids: Sequence[int]
) -> torch.Tensor:
    """The edited logits of one row, float32 [V], in plain words: what `apply_edits` must equal.

    Args:
        logits_V: float32 [V]; left as it is.
        request: whose parameters apply.
        token_ids: prompt and output so far.
    """
    params = request.params
    output = list(token_ids[request.num_prompt :])
    edited = logits_V.clone()
    for token_id, bias in (params.logit_bias or {}).items():
        edited[token_id] += bias
    for token_id in set(token_ids):
        value = edited[token_id]
        factor = torch.tensor(params.repetition_penalty, dtype=torch.float32)
        edited[token_id] = value / factor if value > 0 else value * factor
    for token_id in set(output):
        edited[token_id] -= params.frequency_penalty * output.count(token_id)
        edited[token_id] -= params.presence_penalty
    if params.allowed_token_ids is not None:
        for token_id in set(range(len(edited))) - set(params.allowed_token_ids):
            edited[token_id] = -torch.inf
    for *prefix, last in request.bad_words_ids:
        if output[len(output) - len(prefix) :] == prefix and len(output) >= len(prefix):
            edited[last] = -torch.inf
    if len(output) < params.min_tokens:
        for token_id in (*request.eos_token_ids, *params.stop_token_ids):
            edited[token_id] = -torch.inf
    return edited
