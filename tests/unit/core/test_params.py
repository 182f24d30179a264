"""What exists as SamplingParams is valid, and so survives the way to the engine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo.core.errors import RequestError
from octavo.core.params import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", "xyz"),
        ("stop", None),
        ("bad_words", "word"),
        ("stop_token_ids", None),
        ("stop_token_ids", "12"),
        ("allowed_token_ids", {1, 2}),
        ("logit_bias", [1, 2]),
        ("n", None),
        ("top_k", None),
        ("min_tokens", None),
        ("ignore_eos", 1),
        ("include_stop_str_in_output", None),
        ("skip_special_tokens", "no"),
        ("spaces_between_special_tokens", 0),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{name} is ") as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_lists_do_as_well_as_tuples_and_all_survive_the_wire() -> None:
    given: dict[str, Any] = {
        "stop": ["a", "b"],
        "bad_words": ["c"],
        "stop_token_ids": [1],
        "allowed_token_ids": [2, 3],
        "logit_bias": {4: 1},
        "temperature": 1,
        "seed": None,
        "max_tokens": None,
        "logprobs": None,
    }
    sent = msgspec.msgpack.encode(SamplingParams(**given))
    read = msgspec.msgpack.decode(sent, type=SamplingParams)
    assert read.stop == ("a", "b") and read.allowed_token_ids == (2, 3)
    assert read.logit_bias == {4: 1.0} and read.max_tokens is None
