"""A progress line on standard error: prompts done and tokens per second. Quiet when not a terminal or not wanted."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts; redraws at most ten times a second."""

    def __init__(self, num_prompts: int, *, shown: bool) -> None:
        self._num_prompts = num_prompts
        self._shown = shown and sys.stderr.isatty()
        self._done = 0
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._started = time.monotonic()
        self._drawn = 0.0

    def tokens(self, count: int, now: float) -> None:
        """Output tokens came."""
        self._output_tokens += count
        if self._shown and now - self._drawn > 0.1:
            self._drawn = now
            self._draw()

    def finished(self, prompt_tokens: int) -> None:
        """A prompt is done."""
        self._done += 1
        self._prompt_tokens += prompt_tokens

    def line(self, elapsed_s: float) -> str:
        """`12/16 prompts | prompt 410.2 tok/s | output 88.1 tok/s`."""
        elapsed_s = max(elapsed_s, 1e-9)
        return (
            f"{self._done}/{self._num_prompts} prompts | prompt {self._prompt_tokens / elapsed_s:.1f} tok/s"
            f" | output {self._output_tokens / elapsed_s:.1f} tok/s"
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            self._draw()
            sys.stderr.write("\n")

    def _draw(self) -> None:
        sys.stderr.write(f"\r{self.line(time.monotonic() - self._started)}\x1b[K")
        sys.stderr.flush()
