"""Texts and pairs within a number of tokens, against the library's own truncation."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from octavo.core.errors import RequestError
from octavo.text.tokenizer import Tokenizer, TokenizerFacts

WORDS = {word: index for index, word in enumerate(["<s>", "</s>", *"abcdefghijklmnop"])}


def backend(*, has_types: bool) -> Backend:
    made = Backend(models.WordLevel(WORDS, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>"])
    second = 1 if has_types else 0
    made.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0 </s>:0",
        pair=f"<s>:0 $A:0 </s>:0 </s>:0 $B:{second} </s>:{second}",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    return made


@pytest.mark.parametrize("has_types", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_as_the_library_cuts(has_types: bool, side: str) -> None:
    tokenizer, oracle = Tokenizer(backend(has_types=has_types)), backend(has_types=has_types)
    texts = ["", "a", "a b", "c d e f g", "h i j k l m n o p"]
    for size in range(4, 16):
        oracle.enable_truncation(size, direction=side)
        for one in texts:
            for other in (None, *texts):
                got = tokenizer.encode_within(one, other, max_tokens=size, side=side)  # type: ignore[arg-type]
                wanted = oracle.encode(one, other)
                assert got.token_ids == wanted.ids and len(got.token_ids) <= size
                start = wanted.type_ids.index(1) if 1 in wanted.type_ids else 0
                assert got.pair_start == start


def test_without_special_tokens_and_with_ends_of_the_config() -> None:
    tokenizer = Tokenizer(backend(has_types=True))
    bare = tokenizer.encode_within("a b c", max_tokens=2, add_special_tokens=False)
    assert bare.token_ids == [WORDS["a"], WORDS["b"]]
    assert tokenizer.encode_within("a b c").token_ids == tokenizer.encode("a b c")
    plain = backend(has_types=True)
    plain.post_processor = None
    facts = TokenizerFacts(specials={"eos_token": "</s>"}, add_eos=True)
    ended = Tokenizer(plain, facts)
    assert ended.encode_within("a b c", max_tokens=3).token_ids == [WORDS["a"], WORDS["b"], 1]


def test_no_room_for_special_tokens() -> None:
    with pytest.raises(RequestError, match="special tokens alone are 4") as caught:
        Tokenizer(backend(has_types=True)).encode_within("a", "b", max_tokens=3)
    assert caught.value.param == "truncate_prompt_tokens"
    with pytest.raises(RequestError, match="lone surrogate"):
        Tokenizer(backend(has_types=True)).encode_within("a", "\ud800")


def test_first_tokens() -> None:
    tokenizer = Tokenizer(backend(has_types=True))
    assert tokenizer.first_tokens("a  b c", 2) == "a  b"
    assert tokenizer.first_tokens("a b", 2) == "a b"
