"""Fill in the middle: the token orders with which models were taught to write what stands between two texts.

A tokenizer tells by its special tokens which order its model knows. Knows no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from octavo.core.errors import RequestError
from octavo.text.tokenizer import Tokenizer


class _Order(NamedTuple):
    """Tokens around the two texts; an empty one is left out."""

    before: str
    between: str
    after: str
    suffix_first: bool = False


_ORDERS = (
    _Order("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    _Order("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    _Order("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    _Order("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    _Order("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    _Order("▁<PRE>", "▁<SUF>", "▁<MID>"),
    _Order("[SUFFIX]", "[PREFIX]", "", suffix_first=True),
)


def fill_in(tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
    """The prompt that asks for what stands between `prefix` and `suffix`. A leading BOS stays in front.

    Raises:
        RequestError: the tokenizer has no tokens for this, so the model was not taught it.
    """
    for order in _ORDERS:
        found = [tokenizer.token_id(token) for token in order[:3] if token]
        ids = [token_id for token_id in found if token_id is not None]
        if len(ids) == len(found):
            break
    else:
        raise RequestError(
            "suffix is set, and this model's tokenizer has no tokens for filling in the middle.",
            param="suffix",
            code="unsupported_field",
            fix="Leave it out, or serve a model that was trained for it.",
        )
    has_bos = bool(prefix) and prefix[0] == tokenizer.bos_token_id
    head, body = list(prefix[:has_bos]), list(prefix[has_bos:])
    one, other = (list(suffix), body) if order.suffix_first else (body, list(suffix))
    before, between, *after = ids
    return [*head, before, *one, between, *other, *after]
