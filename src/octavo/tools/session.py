"""A conversation in `octavo chat`: its messages, settings and slash commands. Pure: lines in,
text out.
"""

from __future__ import annotations

from octavo.core.errors import ConfigError, did_you_mean
from octavo.tools import sampling
from octavo.tools.backend import Answer
from octavo.tools.tables import table

HELP = {
    "/help": "show this",
    "/reset": "forget the conversation; the system message and settings stay",
    "/system TEXT": "set the system message and start over; without TEXT, drop it",
    "/set NAME VALUE": "set a sampling parameter; without VALUE, back to the model's default",
    "/stats": "what the answers so far cost",
    "/exit": "leave (so does Ctrl-D); Ctrl-C stops an answer",
}


class Session:
    """Owner of one conversation's state; only its methods change it."""

    def __init__(self, settings: dict[str, object], system: str | None = None) -> None:
        self.settings = settings
        self.system = system
        self.is_over = False
        self._turns: list[dict[str, str]] = []
        self._answers: list[Answer] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model is to read."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self._turns]

    def say(self, text: str) -> None:
        """Add what the user said."""
        self._turns.append({"role": "user", "content": text})

    def take_back(self) -> None:
        """Forget what the user said last: it could not be answered."""
        self._turns.pop()

    def hear(self, answer: Answer) -> None:
        """Add a whole answer."""
        self._answers.append(answer)
        self.hear_part(answer.text)

    def hear_part(self, text: str) -> None:
        """Add a stopped answer; one stopped before its first word takes the question back."""
        if text:
            self._turns.append({"role": "assistant", "content": text})
        else:
            self.take_back()

    def command(self, line: str) -> str:
        """Obey a line that starts with a slash; what to print.

        Raises:
            ConfigError: no such command, or a value that cannot be.
        """
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match name:
            case "/help":
                return table(("command", "does"), list(HELP.items()))
            case "/reset":
                self._turns.clear()
                return "The conversation is forgotten."
            case "/system":
                self.system = rest or None
                self._turns.clear()
                return "System message set." if rest else "No system message."
            case "/set":
                return self._set(rest)
            case "/stats":
                return self._stats()
            case "/exit" | "/quit":
                self.is_over = True
                return ""
        known = [word.split()[0] for word in HELP]
        raise ConfigError(
            f"no command {name!r}.{did_you_mean(name, known)}", code="E-CFG-02", fix="See /help."
        )

    def _set(self, rest: str) -> str:
        name, _, value = rest.replace("=", " ").partition(" ")
        if not name:
            shown = ", ".join(f"{key}={value}" for key, value in self.settings.items())
            return shown or f"All as the model has them. Known: {', '.join(sampling.NUMBERS)}."
        if not value.strip():
            sampling.check_name(name)
            self.settings.pop(name, None)
            return f"{name} is as the model has it."
        self.settings[name] = sampling.parse(name, value.strip())
        return f"{name} = {self.settings[name]}"

    def _stats(self) -> str:
        if not self._answers:
            return "No answer yet."
        rows = [(str(i), answer.line()) for i, answer in enumerate(self._answers, 1)]
        total = sum(answer.num_tokens for answer in self._answers)
        seconds = sum(answer.decode_s for answer in self._answers)
        rate = f", {total / seconds:.1f} tok/s" if seconds > 0 else ""
        return table(("answer", ""), rows) + f"\n{total} tokens in all{rate}"
