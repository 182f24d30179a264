"""What a front end refuses before anything reaches the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.errors import ContextLengthError, RequestError
from octavo.core.params import SamplingParams
from octavo.engine.frontend import Caller, Frontend, check_prompt


class Ready:
    """What of an engine's `Ready` that a front end reads."""

    max_model_len = 64
    vocab_size = 100
    pooling = None


class ReadyClient:
    """An engine client that only says what was started."""

    ready = Ready()


class Words:
    """A tokenizer that only knows its end token."""

    eos_token_ids = (1,)


def build(token_ids: list[Any], **params: Any) -> Any:
    frontend = Frontend(ReadyClient(), Words())  # type: ignore[arg-type]
    return frontend.build(token_ids, SamplingParams(**params), Caller(), "r")


@pytest.mark.parametrize("token_ids", [[1.5, 2], ["1"], [None]])
def test_a_prompt_of_other_things_than_ids_is_refused(token_ids: list[Any]) -> None:
    with pytest.raises(RequestError, match="prompt token ids") as caught:
        build(token_ids)
    assert caught.value.param == "prompt"


def test_ids_become_plain_integers() -> None:
    ids = check_prompt([np.int64(3), True], 100)  # type: ignore[list-item]
    assert ids == (3, 1) and {type(one) for one in ids} == {int}


def test_min_tokens_that_the_context_has_no_room_for_is_refused() -> None:
    assert build([2] * 60, max_tokens=None, min_tokens=4)[0].max_tokens == 4
    with pytest.raises(ContextLengthError, match="room for 4") as caught:
        build([2] * 60, max_tokens=None, min_tokens=5)
    assert caught.value.param == "min_tokens"
