"""LlamaIndex: chat, complete, and both as streams."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

base, model = sys.argv[1], sys.argv[2]
options = {"api_base": f"{base}/v1", "api_key": "sk-x", "model": model, "max_tokens": 12}
llm = OpenAILike(**options, is_chat_model=True, additional_kwargs={"seed": 1})
messages = [ChatMessage(role="user", content="hi")]
whole = llm.chat(messages).message.content
assert whole
assert "".join(part.delta or "" for part in llm.stream_chat(messages)) == whole
plain = OpenAILike(**options, is_chat_model=False, additional_kwargs={"seed": 1})
text = plain.complete("a").text
assert text
assert "".join(part.delta or "" for part in plain.stream_complete("a")) == text
