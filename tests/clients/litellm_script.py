"""LiteLLM: completion, stream, text completion, an error as its own type."""

import sys

import litellm

base, model = sys.argv[1], sys.argv[2]
options = {"model": f"openai/{model}", "api_base": f"{base}/v1", "api_key": "sk-x"}
messages = [{"role": "user", "content": "hi"}]
whole = litellm.completion(**options, messages=messages, max_tokens=12, seed=1)
assert whole.usage.completion_tokens == 12, whole
parts = litellm.completion(**options, messages=messages, max_tokens=12, seed=1, stream=True)
text = "".join(part.choices[0].delta.content or "" for part in parts)
assert text == whole.choices[0].message.content, (text, whole)
plain = litellm.text_completion(
    model=f"text-completion-openai/{model}", api_base=f"{base}/v1", api_key="sk-x",
    prompt="a", max_tokens=4,
)  # fmt: skip
assert plain.choices[0].text
try:
    litellm.completion(**options, messages=messages, temperature=-1)
except litellm.BadRequestError as error:
    assert "temperature" in str(error)
else:
    raise AssertionError("a bad temperature was taken")
