"""POST /tokenize and /detokenize: what the tokenizer makes of a prompt, a conversation, or ids."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.core.errors import RequestError
from octavo.server.call import Call, json_response
from octavo.server.openai.prompts import chat_prompt, encode
from octavo.server.openai.tools import check_tools
from octavo.server.parse import Parser
from octavo.server.schema import DetokenizeBody, TokenizeBody

_tokenize = Parser(TokenizeBody)
_detokenize = Parser(DetokenizeBody)
_CHAT_ONLY = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools")


class Tokens(msgspec.Struct, kw_only=True):
    """What a text became."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class Text(msgspec.Struct, kw_only=True):
    """What ids became."""

    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """What the tokenizer calls its own."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    eos_token_ids: list[int]
    """Every id that ends a text."""
    vocab_size: int
    model_max_length: int


async def tokenize(call: Call) -> Response:
    """Text or messages to token ids, as a completion or chat call would see them."""
    body = await call.body(_tokenize)
    state = call.state
    state.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        given = "neither" if body.prompt is None else "both"
        raise RequestError(f"{given} of prompt and messages is set; expected one.", param="prompt")
    ready = state.check_accepting()
    if body.prompt is None:
        tools = body.tools or []
        check_tools(tools)
        ids = await chat_prompt(state.frontend, state.chat_template, body, call.refuse, tools=tools)
    else:
        for name in _CHAT_ONLY:
            if getattr(body, name) is not None:
                raise RequestError(f"{name} goes with messages, not with a prompt.", param=name)
        adds = body.add_special_tokens is not False
        ids = await encode(state.frontend, body.prompt, add_special_tokens=adds)
    answer = Tokens(count=len(ids), max_model_len=ready.max_model_len, tokens=ids)
    if body.return_token_strs:
        answer.token_strs = [state.frontend.tokenizer.token_text(token_id) for token_id in ids]
    return json_response(answer)


async def tokenizer_info(call: Call) -> Response:
    """The tokens that begin, end and fill texts, for clients that tokenize here."""
    tokenizer = call.state.frontend.tokenizer
    ready = call.state.check_accepting()
    named = tokenizer.special_tokens
    return json_response(
        TokenizerInfo(
            bos_token=named.get("bos_token"),
            eos_token=named.get("eos_token"),
            pad_token=named.get("pad_token"),
            eos_token_ids=list(tokenizer.eos_token_ids),
            vocab_size=ready.vocab_size,
            model_max_length=ready.max_model_len,
        )
    )


async def detokenize(call: Call) -> Response:
    """Token ids to text, special tokens included."""
    body = await call.body(_detokenize)
    state = call.state
    state.check_model(body.model)
    ready = state.check_accepting()
    if len(body.tokens) > ready.max_model_len:
        raise RequestError(
            f"tokens has {len(body.tokens)} ids; expected at most {ready.max_model_len}.",
            param="tokens",
        )
    highest = max(body.tokens, default=0)
    if highest >= ready.vocab_size:
        raise RequestError(
            f"tokens holds {highest}; expected ids in [0, {ready.vocab_size}).", param="tokens"
        )
    text = state.frontend.tokenizer.decode(body.tokens, skip_special_tokens=False)
    return json_response(Text(prompt=text))
