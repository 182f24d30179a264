"""Templates that callers send: the same text, and a process that can be stopped."""

import time

import pytest

from octavo.core.errors import RequestError
from octavo.text.render_worker import UntrustedRenderer
from octavo.text.template_env import RenderLimits

HELLO = [{"role": "user", "content": "Grüß dich 😀"}]
RENDERER = UntrustedRenderer(limits=RenderLimits(timeout_s=0.3, max_chars=1 << 20), max_at_once=2)


def render(source, messages=HELLO):
    return RENDERER.render(source, {"bos_token": "<s>"}, messages, add_generation_prompt=True)


def test_the_text_comes_back():
    assert render("{{ bos_token }}{{ messages[0].content }}") == "<s>" + HELLO[0]["content"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "0.3 s"),
        ("{{ 'a' | center(10 ** 10) }}", "chat template"),
        ("{% for %}", "does not compile"),
        ("{{ raise_exception('no, thank you') }}", "no, thank you"),
        # Text that grows where the environment does not look: the process runs out of memory.
        (
            "{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}"
            "{% endfor %}",
            "chat template",
        ),
    ],
)
def test_it_is_stopped_or_refused(source, says):
    start = time.monotonic()
    with pytest.raises(RequestError, match=says):
        render(source)
    assert time.monotonic() - start < 8
