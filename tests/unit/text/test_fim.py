"""Prompts for filling in the middle, in each order that models are taught."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from fakes import byte_tokenizer
from octavo.core.errors import RequestError
from octavo.text.fim import fill_in
from octavo.text.tokenizer import Tokenizer, TokenizerFacts


def tokenizer(*tokens: str) -> Tokenizer:
    backend = byte_tokenizer()._backend
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", *tokens)])
    return Tokenizer(backend, TokenizerFacts(specials={"bos_token": "<s>"}))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], "0ab1cd2"),
        (["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], "0ab1cd2"),
        (["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], "0ab1cd2"),
        (["▁<PRE>", "▁<SUF>", "▁<MID>"], "0ab1cd2"),
        (["[SUFFIX]", "[PREFIX]"], "0cd1ab"),
    ],
)
def test_orders(tokens: list[str], expected: str) -> None:
    made = tokenizer(*tokens)
    names = {made.token_id(token): str(i) for i, token in enumerate(tokens)}

    def shown(ids: list[int]) -> str:
        return "".join(names.get(one, chr(one)) for one in ids)

    assert shown(fill_in(made, list(b"ab"), list(b"cd"))) == expected
    bos = made.bos_token_id
    assert bos is not None
    with_bos = fill_in(made, [bos, *b"ab"], list(b"cd"))
    assert with_bos[0] == bos and shown(with_bos[1:]) == expected


def test_a_model_that_was_not_taught_it() -> None:
    with pytest.raises(RequestError, match="filling in the middle") as refused:
        fill_in(tokenizer("<|fim_prefix|>", "<|fim_suffix|>"), [97], [98])
    assert refused.value.param == "suffix"
