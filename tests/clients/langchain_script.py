"""LangChain: invoke, stream, batch, a chain, and the completion model."""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

base, model = sys.argv[1], sys.argv[2]
options = {"base_url": f"{base}/v1", "api_key": "sk-x", "model": model, "seed": 1}
chat = ChatOpenAI(**options, max_tokens=12)
whole = chat.invoke("hi")
assert whole.usage_metadata["output_tokens"] == 12, whole
assert "".join(part.content for part in chat.stream("hi")) == whole.content
assert [one.content for one in chat.batch(["hi", "hi"])] == [whole.content] * 2
chain = ChatPromptTemplate.from_messages([("user", "{text}")]) | chat | StrOutputParser()
assert chain.invoke({"text": "hi"}) == whole.content
told = chat.bind(logprobs=True, top_logprobs=2).invoke("hi")
assert len(told.response_metadata["logprobs"]["content"]) == 12
assert OpenAI(**options, max_tokens=4).invoke("a")
