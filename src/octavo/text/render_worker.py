"""Renders a chat template that came from outside, in a process of its own that is killed when it takes too long.

One process per rendering, so nothing of one caller's messages is left for the next caller's template. Run as
`python -m octavo.text.render_worker`, it reads one job from stdin and writes the outcome to stdout.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.core.errors import ErrorInfo, OctavoError, RequestError, from_info
from octavo.text.chat import ChatTemplate
from octavo.text.template_env import RenderLimits

_MEMORY_BYTES = 512 << 20
_START_ALLOWANCE_S = 5.0


class UntrustedRenderer:
    """Renders templates that callers send. Safe to share between threads; at most `max_at_once` processes run."""

    def __init__(self, *, limits: RenderLimits | None = None, max_at_once: int = 4) -> None:
        self._limits = limits or RenderLimits()
        self._slots = threading.BoundedSemaphore(max_at_once)

    def render(
        self,
        source: str,
        specials: Mapping[str, str],
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """What `ChatTemplate(source, specials).render(...)` gives, from a process of its own.

        Blocks the calling thread; costs the start of a Python process.

        Raises:
            RequestError: as `ChatTemplate.render`; also for a template that does not compile, and
                when the process had to be stopped.
        """
        job = {
            "source": source,
            "specials": dict(specials),
            "messages": list(messages),
            "timeout_s": self._limits.timeout_s,
            "max_chars": self._limits.max_chars,
            "options": {
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": continue_final_message,
                "tools": tools,
                "documents": documents,
                "kwargs": dict(kwargs or {}),
            },
        }
        with self._slots:
            outcome = json.loads(_run(json.dumps(job).encode(), self._limits))
        if "text" in outcome:
            return str(outcome["text"])
        raise from_info(ErrorInfo(**outcome["error"]))


def _run(job: bytes, limits: RenderLimits) -> bytes:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "octavo.text.render_worker"],
            input=job,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.timeout_s + _START_ALLOWANCE_S,
            # Nothing of our environment, which may hold keys, is the template's to read.
            env={"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "LANG": "C.UTF-8"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _stopped(f"took longer than {limits.timeout_s:g} s") from error
    if done.returncode != 0:
        raise _stopped("used too much memory or time")
    return done.stdout


def _stopped(why: str) -> RequestError:
    return RequestError(
        f"rendering the chat template {why}.",
        code="chat_template_limit",
        param="chat_template",
        fix="Send a simpler template.",
    )


def main() -> None:
    """One job from stdin to stdout."""
    job = json.load(sys.stdin)
    limits = RenderLimits(timeout_s=job["timeout_s"], max_chars=job["max_chars"])
    # The limits hold for C code too, where the environment's own checks do not run.
    seconds = int(limits.timeout_s) + 2
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        template = ChatTemplate(job["source"], job["specials"], limits=limits)
        outcome: dict[str, Any] = {"text": template.render(job["messages"], **job["options"])}
    except RequestError as error:
        outcome = {"error": _as_dict(error)}
    except OctavoError as error:
        refusal = RequestError(error.message, param="chat_template", code="chat_template_error")
        outcome = {"error": _as_dict(refusal)}
    sys.stdout.write(json.dumps(outcome))


def _as_dict(error: OctavoError) -> dict[str, Any]:
    info = error.info()
    return {name: getattr(info, name) for name in info.__struct_fields__}


if __name__ == "__main__":
    main()
