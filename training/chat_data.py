"""Questions and answers made from documentation and source text, in the chat template.

Every answer is text of the sources (with reST marks removed) inside a fixed phrase; nothing is
invented. Fixed dialogue (greetings, identity, refusals) is in `smalltalk.py`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import rest_entries
import smalltalk
import source_entries
from rest_entries import Entry

Turn = tuple[str, str]
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that answers questions about Python.",
    "You are Octavo's bundled model. Answer briefly.",
    "Answer questions about the Python standard library.",
)
DESCRIBE = (
    "What does {name} do?",
    "What does `{name}` do?",
    "what does {name} do",
    "Explain {name}.",
    "Explain {name}",
    "Describe {name}.",
    "Tell me about {name}.",
    "What is {name}?",
    "What is {name} for?",
    "How does {name} work?",
    "Can you explain {name}?",
    "help({name})",
    "In Python, what does {name} do?",
)
SIGNATURE = (
    "Show the signature of {name}.",
    "What is the signature of {name}?",
    "What arguments does {name} take?",
    "Which parameters does {name} accept?",
    "How do I call {name}?",
)
EXAMPLE = (
    "Give an example of {name}.",
    "Show me an example of {name}.",
    "How do I use {name}?",
    "Show how {name} is used.",
)
WHICH_MODULE = (
    "Which module has {short}?",
    "Where is {short} defined?",
    "Which module do I import for {short}?",
)
MODULE = (
    "What is the {name} module?",
    "What is the {name} module for?",
    "What does the {name} module do?",
    "Explain the {name} module.",
    "Tell me about the {name} module.",
    "When would I use {name}?",
)
TERM = ("What is {name}?", "What does {name} mean?", "Define {name}.", "Explain {name}.")
WRITE = (
    "Write a Python function {name} that does this: {what}",
    "Write a function: {what}",
    "Implement {name} in Python. {what}",
    "Show me Python code for this: {what}",
)


@dataclass(slots=True)
class ChatBuilder:
    """Collects turns with one seeded source of randomness. Owned by `build_chats`."""

    rng: random.Random
    turns: list[Turn] = field(default_factory=list)

    def ask(self, phrasings: tuple[str, ...], count: int, answer: str, **names: str) -> None:
        """Add `count` phrasings of one question, all with the same answer."""
        for phrasing in self.rng.sample(phrasings, min(count, len(phrasings))):
            self.turns.append((phrasing.format(**names), answer))


def add_entry(builder: ChatBuilder, entry: Entry) -> None:
    """Questions about one documented function, class, method or constant."""
    is_short = "." not in entry.name or entry.name.count(".") == 1
    if entry.summary:
        builder.ask(DESCRIBE, 4 if is_short else 2, entry.summary, name=entry.name)
    if entry.signature:
        builder.ask(SIGNATURE, 1, f"```python\n{entry.signature}\n```", name=entry.name)
        if entry.summary and builder.rng.random() < 0.3:
            answer = f"```python\n{entry.signature}\n```\n{entry.summary}"
            builder.ask(EXAMPLE[2:], 1, answer, name=entry.name)
    if entry.example:
        builder.ask(EXAMPLE, 2, f"```python\n{entry.example}\n```", name=entry.name)
    short = entry.name.rpartition(".")[2]
    if entry.module and builder.rng.random() < 0.3:
        answer = f"`{short}` is in the `{entry.module}` module."
        builder.ask(WHICH_MODULE, 1, answer, short=short)


def add_functions(builder: ChatBuilder, library: dict[str, str]) -> None:
    """Docstrings and short function bodies of the library's source files."""
    for function in source_entries.functions(library):
        builder.ask(DESCRIBE, 1, function.docstring, name=function.name)
        if function.code:
            answer = f"```python\n{function.code}\n```"
            short = function.name.rpartition(".")[2]
            builder.ask(WRITE, 1, answer, name=short, what=function.docstring.split("\n\n")[0])


def render(turns: list[Turn], system: str | None) -> str:
    """The conversation as `tokenizer_config.json`'s chat template would write it."""
    parts = [f"<|im_start|>system\n{system}<|im_end|>\n"] if system else []
    for question, answer in turns:
        parts.append(f"<|im_start|>user\n{question}<|im_end|>\n")
        parts.append(f"<|im_start|>assistant\n{answer}<|im_end|>\n")
    return "".join(parts)


def converse(rng: random.Random, turns: list[Turn], smalltalk_turns: list[Turn]) -> Iterator[str]:
    """Group shuffled turns into conversations of one to three, some opened by a greeting."""
    position = 0
    while position < len(turns):
        size = rng.choices((1, 2, 3), weights=(0.75, 0.15, 0.1))[0]
        conversation = turns[position : position + size]
        position += size
        if rng.random() < 0.03:
            conversation = [rng.choice(smalltalk_turns), *conversation]
        if rng.random() < 0.02:
            conversation = [*conversation, rng.choice(smalltalk.closings())]
        yield render(conversation, rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.1 else None)


def _clean(text: str) -> str:
    return re.sub(r"[ \t]+\n", "\n", text).strip()


def build_chats(docs: dict[str, str], library: dict[str, str], seed: int = 0) -> list[str]:
    """All conversations, shuffled, from the training files given as name -> text."""
    rng = random.Random(seed)
    builder = ChatBuilder(rng)
    for name, text in docs.items():
        for entry in rest_entries.entries(name, text):
            add_entry(builder, entry)
        for module, summary in rest_entries.modules(text):
            builder.ask(MODULE, 6, summary, name=module)
    for term, definition in rest_entries.glossary(docs.get("docs/glossary.rst", "")):
        builder.ask(TERM, 4, definition, name=term)
    for name, text in docs.items():
        if "/faq/" in name:
            builder.turns += [turn for turn in rest_entries.questions(text) for _ in range(3)]
    add_functions(builder, library)
    turns = [(_clean(q), _clean(a)) for q, a in builder.turns if 10 < len(a) < 1500]
    small = smalltalk.turns(rng)
    rng.shuffle(turns)
    chats = list(converse(rng, turns, small))
    chats += [render([turn], rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.1 else None)
              for turn in small]  # fmt: skip
    rng.shuffle(chats)
    return chats
