"""Instructor: it asks for JSON of a model, reads it into a type, and asks again when it does not fit."""

import sys

import instructor
import openai
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


base, model = sys.argv[1], sys.argv[2]
client = instructor.from_openai(
    openai.OpenAI(base_url=f"{base}/v1", api_key="sk-x"), mode=instructor.Mode.MD_JSON
)
options = {
    "model": model,
    "response_model": Person,
    "messages": [{"role": "user", "content": "Ann, 7"}],
}
found = client.chat.completions.create(**options, max_tokens=64)
assert (found.name, found.age) == ("Ann", 7), found
try:
    client.chat.completions.create(**options, max_tokens=2, max_retries=1)
except (instructor.core.IncompleteOutputException, InstructorRetryException):
    pass
else:
    raise AssertionError("half an answer was taken")
