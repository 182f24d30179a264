"""A tokenizer that is not the model's: refused or said at the start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from octavo import LLM
from octavo.core.errors import ModelError
from octavo.text.fit import check_fit
from octavo.text.tokenizer import Tokenizer


def words(count: int, *added: str) -> Backend:
    backend = Backend(WordLevel({f"w{index}": index for index in range(count)}, unk_token="w0"))
    backend.add_tokens([AddedToken(text) for text in added])
    return backend


def said(caplog: pytest.LogCaptureFixture, tokenizer: Backend, size: int, *, dummy: bool) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "octavo"):
        check_fit(Tokenizer(tokenizer), size, is_dummy=dummy)
    return "\n".join(record.getMessage() for record in caplog.records)


def test_ordinary_ids_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(ModelError, match="has ids up to 100; expected ids below 100") as caught:
        check_fit(Tokenizer(words(101, "<x>")), 100, is_dummy=False)
    assert caught.value.code == "E-TOK-04" and "--tokenizer" in caught.value.fix


def test_added_tokens_beyond_it_are_told(caplog: pytest.LogCaptureFixture) -> None:
    line = said(caplog, words(100, "<x>", "<y>"), 101, dummy=False)
    assert "added tokens with ids up to 101" in line and "ends at 100" in line


def test_dummy_weights_take_any(caplog: pytest.LogCaptureFixture) -> None:
    assert "has ids up to 100" in said(caplog, words(101), 100, dummy=True)
    assert not said(caplog, words(10), 100, dummy=True)


def test_padding_is_no_matter_and_half_a_vocabulary_is(caplog: pytest.LogCaptureFixture) -> None:
    assert not said(caplog, words(100), 100, dummy=False)
    assert not said(caplog, words(98), 100, dummy=False)
    assert "below 89, and the model 100 ids" in said(caplog, words(89), 100, dummy=False)


def test_a_start_with_another_models_tokenizer_fails(tmp_path: Path) -> None:
    words(5000).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError) as caught:
        LLM(tokenizer=str(tmp_path), threads=1, kv_cache_memory_bytes=1 << 22, max_model_len=64)
    assert caught.value.code == "E-TOK-04"
